"""A small change of a large document costs its watchers the change, not the document."""

from collections.abc import AsyncIterator

import anyio
import orjson
import pytest

from runwire.wire import EVENTS_PATH, Json, JsonObject
from runwire_engine.run_metadata import MetadataWrite
from tests.support.sockets import of_type, open_socket
from tests.support.stage import Stage

pytestmark = pytest.mark.anyio

SIZE = 200_000
# What one operation may cost a watcher: the message around it included.
MOST = 1_000


async def large_run(stage: Stage) -> tuple[str, int]:
    """Return an executing run with a large document, and its execution."""
    run_id = await stage.trigger("large")
    execution = await stage.start(run_id)
    await stage.set_metadata(run_id, execution, log=["x" * 1_000] * (SIZE // 1_000))
    return run_id, execution


async def append(stage: Stage, run_id: str, execution: int, value: Json) -> None:
    operation: JsonObject = {"type": "append", "key": "log", "value": value}
    await stage.engine.metadata.apply(stage.env, MetadataWrite(run_id, [operation], execution))


@pytest.mark.parametrize("target", ["run", "tag"])
async def test_a_watcher_on_a_socket_gets_the_operation_only(stage: Stage, target: str) -> None:
    run_id, execution = await large_run(stage)
    to: JsonObject = {"run": run_id} if target == "run" else {"tags": ["large"]}
    async with open_socket(stage.url, stage.key) as socket:
        await socket.subscribe("a", to)
        await socket.until("live")
        for number in range(3):
            await append(stage, run_id, execution, f"line {number}")
        told: list[JsonObject] = []
        while not any("line 2" in orjson.dumps(each).decode() for each in told):
            told.append(await socket.next())
    patches = of_type(told, "patch")
    assert [each["value"] for patch in patches for each in patch["metadata"]] == [
        "line 0",
        "line 1",
        "line 2",
    ]
    assert len(orjson.dumps(told)) < 3 * MOST


@pytest.mark.parametrize("target", ["run", "tag"])
async def test_a_watcher_of_events_gets_the_operation_only(stage: Stage, target: str) -> None:
    run_id, execution = await large_run(stage)
    to: JsonObject = {"run": run_id} if target == "run" else {"tags": ["large"]}
    body: Json = [{"sub": "a", "to": to}]
    async with (
        stage.server.client() as http,
        http.stream("POST", EVENTS_PATH, json=body) as response,
    ):
        pieces = response.aiter_bytes()
        await _read_until(pieces, b'"type":"live"')
        await append(stage, run_id, execution, "one line")
        told = await _read_until(pieces, b"one line")
    assert len(told) < MOST


async def _read_until(pieces: AsyncIterator[bytes], wanted: bytes) -> bytes:
    """Return the bytes of the response up to the piece in which these have come."""
    seen = b""
    with anyio.fail_after(60):
        while wanted not in seen:
            seen += await anext(pieces)
    return seen
