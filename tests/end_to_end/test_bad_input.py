"""Bad input of every kind: a clear, typed error each, and nobody else notices.

Every test runs beside a healthy subscriber on the same server. Its run writes a stream the whole
time, and in the end it must have each chunk once and in order, on the one socket it opened.
"""

import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import jwt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from runwire import AsyncRunwire, RunwireError, UnauthorizedError, streams
from runwire.errors import ForbiddenError, InvalidValueError, MalformedError, NotFoundError
from runwire.wire import PROTOCOL, SOCKET_PATH, CloseCode
from tests.support.server import TestRealtime, running_realtime
from tests.support.working import Bench, defined, error_of, opened_bench

pytestmark = pytest.mark.anyio

NOBODY = "run_0000000000000000000000000"
TICK = 0.01


# What a healthy subscriber sees meanwhile --------------------------------------------------------


@dataclass
class Bystander:
    """Reads one run's stream on a socket of its own; never reconnects."""

    seen: list[tuple[int, Any]] = field(default_factory=list[tuple[int, Any]])
    errors: list[Any] = field(default_factory=list[Any])
    status: str = ""
    is_done: bool = False

    async def read(self, socket: ClientConnection) -> None:
        while not self.is_done:
            for message in json.loads(await socket.recv()):
                self.take(message)

    def take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "chunks":
                self.seen += enumerate(message["data"], message["seq"])
            case "run":
                self.status = message["run"]["status"]
            case "patch":
                self.status = message["set"].get("status", self.status)
            case "snapshot" if message["runs"]:
                self.status = message["runs"][0]["status"]
            case "done":
                self.is_done = True
            case "error" | "gap":
                self.errors.append(message)
            case _:
                pass


@asynccontextmanager
async def undisturbed(bench: Bench, server: TestRealtime) -> AsyncGenerator[None]:
    """Run a healthy subscriber beside the block, which must not make a difference to it."""
    enough = anyio.Event()

    async def tick() -> int:
        number = 0
        while not enough.is_set():
            await streams.append("ticks", number)
            number += 1
            await anyio.sleep(TICK)  # the pace of a stream
        return number

    made, bystander = defined(tick), Bystander()
    async with bench.worker(made), open_socket(server, server.key) as socket:
        run_id = await bench.start(made)
        to = {"to": {"run": run_id}, "streams": {"ticks": {"from": "start"}}}
        await say(socket, type="subscribe", sub="healthy", **to)
        with anyio.fail_after(40):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bystander.read, socket)
                yield
                so_far = len(bystander.seen)
                while len(bystander.seen) < so_far + 3:  # it is served still
                    await anyio.sleep(TICK)
                enough.set()
        count = int((await bench.until(run_id)).output or "0")
    assert bystander.seen == [(number, number) for number in range(count)]
    assert (bystander.status, bystander.errors) == ("COMPLETED", [])


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


@pytest.fixture
async def server(bench: Bench, anyio_backend: str) -> AsyncGenerator[TestRealtime]:
    async with running_realtime(bench.database_url) as running, undisturbed(bench, running):
        yield running


@asynccontextmanager
async def open_socket(
    server: TestRealtime, token: str | None = None
) -> AsyncGenerator[ClientConnection]:
    """Open a socket of our own; with a token, authenticated."""
    url = server.url.replace("http", "ws") + SOCKET_PATH
    protocols = [Subprotocol(PROTOCOL)]
    async with connect(url, subprotocols=protocols, compression=None, proxy=None) as socket:
        if token is not None:
            await say(socket, type="auth", token=token)
            (ready,) = json.loads(await socket.recv())
            assert ready["type"] == "ready"
        yield socket


async def say(socket: ClientConnection, **message: Any) -> None:
    await socket.send(json.dumps(message))


async def answers(socket: ClientConnection) -> AsyncGenerator[dict[str, Any]]:
    while True:
        for message in json.loads(await socket.recv()):
            yield message


async def until_type(socket: ClientConnection, type: str) -> dict[str, Any]:
    """Return the next message of a type."""
    with anyio.fail_after(60):
        async for message in answers(socket):
            if message["type"] == type:
                return message
    raise AssertionError


async def until_closed(socket: ClientConnection) -> list[dict[str, Any]]:
    """Return what comes until the server closes the socket; the code is `socket.close_code`."""
    found: list[dict[str, Any]] = []
    with anyio.fail_after(60):
        try:
            async for message in answers(socket):
                found.append(message)
        except ConnectionClosed:
            pass
    return found


def client_of(server: TestRealtime, token: str) -> AsyncRunwire:
    return AsyncRunwire(api_url=server.url, access_token=token)


async def refused(server: TestRealtime, token: str, run_id: str) -> tuple[RunwireError, ...]:
    """Return what retrieving, following and reading a run raise."""
    found: list[RunwireError] = []
    async with client_of(server, token) as client:
        following = client.runs.subscribe_to_run(run_id)
        reading = client.streams.read(run_id, "ticks")
        for attempt in (client.runs.retrieve(run_id), _drain(following), _drain(reading)):
            with anyio.fail_after(60), pytest.raises(RunwireError) as caught:
                await attempt
            found.append(caught.value)
    return tuple(found)


async def _drain(source: Any) -> None:
    async for _ in source:
        pass


# Credentials -------------------------------------------------------------------------------------


def foreign_token(server: TestRealtime) -> str:
    """Sign what a server of another secret would have signed."""
    claims = {"sub": str(server.environment_id), "exp": 4_000_000_000, "scopes": ["read:runs"]}
    return jwt.encode(claims, "of another master, also forty bytes long.", "HS256")


def unsigned_token(server: TestRealtime) -> str:
    claims = {"sub": str(server.environment_id), "exp": 4_000_000_000, "scopes": ["read:runs"]}
    return jwt.encode(claims, "", "none")


WRONG: dict[str, Callable[[TestRealtime], str]] = {
    "garbage": lambda server: "garbage",
    "an unknown key": lambda server: f"tr_dev_sk_{'x' * 24}",
    "a key with one letter off": lambda server: server.key[:-1] + "~",
    "a token of another secret": foreign_token,
    "a token without a signature": unsigned_token,
    "a token cut short": lambda server: foreign_token(server)[:-10],
    "no header of a token": lambda server: "eyJ.eyJ.eyJ",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=[name.replace(" ", "-") for name in WRONG])
async def test_a_wrong_token_is_unauthorized_everywhere(
    server: TestRealtime, wrong: Callable[[TestRealtime], str]
) -> None:
    token = wrong(server)
    for error in await refused(server, token, NOBODY):
        assert isinstance(error, UnauthorizedError), error
        assert (error.status, error.code) == (401, "unauthorized")
        assert token not in str(error)
    async with open_socket(server) as socket:
        await say(socket, type="auth", token=token)
        await until_closed(socket)
        assert socket.close_code == CloseCode.INVALID_TOKEN


async def test_a_scope_that_does_not_cover_a_run_shows_nothing_of_it(
    bench: Bench, server: TestRealtime
) -> None:
    async def quiet() -> str:
        return "secret"

    made = defined(quiet)
    async with bench.worker(made):
        run = await bench.finished(made, tags=("user:1",))
    # Twins: what only looks like the id or the tag.
    for scope in (f"read:runs:{run.id[:-1]}", f"read:runs:{run.id}0", "read:tags:user:10"):
        over_http, *live = await refused(server, await server.token(scope), run.id)
        assert isinstance(over_http, ForbiddenError), (scope, over_http)
        for error in live:
            assert isinstance(error, NotFoundError), (scope, error)
        assert "secret" not in f"{over_http} {live}"
    token = await server.token(f"read:runs:{run.id}")
    async with client_of(server, token) as client:
        assert (await client.runs.retrieve(run.id)).output == "secret"
        for attempt in (client.tasks.trigger(made.id), client.runs.cancel(NOBODY)):
            with pytest.raises((ForbiddenError, NotFoundError)):
                await attempt
        with pytest.raises(ForbiddenError):
            await _drain(client.runs.subscribe_to_runs_with_tag("user:1"))
        with pytest.raises(ForbiddenError):
            await _drain(client.runs.subscribe_to_runs())
        with pytest.raises(ForbiddenError):
            await client.auth.create_public_token(scopes={"read": {"runs": True}})


async def test_an_unknown_run_is_not_found(server: TestRealtime) -> None:
    for run_id in (NOBODY, "run_'; drop table runs", "nonsense", "run_%00", "../runs"):
        for error in await refused(server, server.key, run_id):
            assert isinstance(error, (NotFoundError, MalformedError)), (run_id, error)


async def test_an_expired_token_ends_what_it_opened(bench: Bench, server: TestRealtime) -> None:
    async def waits() -> None:
        await anyio.sleep_forever()

    made = defined(waits)
    async with bench.worker(made):
        run_id = await bench.start(made)
        token = await server.token(f"read:runs:{run_id}", expirationTime="2s")
        async with open_socket(server) as socket, client_of(server, token) as client:
            await say(socket, type="auth", token=token)
            await say(socket, type="subscribe", sub="mine", to={"run": run_id})
            told = [message["type"] for message in await until_closed(socket)]
            assert told[0] == "ready" and {"live", "token_expiring"} <= {*told}
            assert socket.close_code == CloseCode.TOKEN_EXPIRED
            # The client has no other token to go on with: it says so instead of trying for ever.
            with anyio.fail_after(60), pytest.raises(UnauthorizedError):
                await _drain(client.runs.subscribe_to_run(run_id))
    await bench.engine.runs.cancel(bench.env, run_id)


async def test_an_expired_token_opens_nothing(server: TestRealtime) -> None:
    a_minute_ago = time.time() - 60  # clocks may differ by seconds
    minted = server.services.tokens.mint(
        server.environment_id, ["read:runs"], now=a_minute_ago, lifetime=30
    )
    for error in await refused(server, minted.token, NOBODY):
        assert isinstance(error, UnauthorizedError), error
        assert "expired" in str(error)


# The socket --------------------------------------------------------------------------------------

GARBAGE: dict[str, str | bytes] = {
    "not json": "{",
    "nothing": "",
    "an array": "[]",
    "null": "null",
    "a number": "1e400",
    "no type": "{}",
    "an unknown type": '{"type":"launch"}',
    "a server's message": '{"type":"ready","protocol":"runwire.v1"}',
    "a subscription to nothing": '{"type":"subscribe","sub":"a","to":{}}',
    "a subscription to two things": '{"type":"subscribe","sub":"a","to":{"run":"a","batch":"b"}}',
    "a sub without end": json.dumps({"type": "subscribe", "sub": "s" * 65, "to": {"run": "run_1"}}),
    "a start that is none": json.dumps(
        {"type": "subscribe", "sub": "a", "to": {"run": NOBODY}, "streams": {"k": {"from": "x"}}}
    ),
    "a forged cursor": json.dumps(
        {"type": "subscribe", "sub": "a", "to": {"run": NOBODY}, "cursor": "r1.x.'; drop"}
    ),
    "deep nesting": "[" * 30_000,
    "a lone surrogate": '{"type":"subscribe","sub":"\\ud800","to":{"run":"run_1"}}',
    "a nul": '{"type":"subscribe","sub":"a","to":{"tags":["\\u0000"]}}',
    "bytes": b"\x00\xff\xfe",
    "a token that is none": '{"type":"auth","token":5}',
}


@pytest.mark.parametrize(
    "garbage", GARBAGE.values(), ids=[name.replace(" ", "-") for name in GARBAGE]
)
async def test_garbage_on_the_socket_is_told_and_costs_nobody_else_anything(
    server: TestRealtime, garbage: str | bytes
) -> None:
    async with open_socket(server, server.key) as socket:
        await socket.send(garbage)
        error = await until_type(socket, "error")
        assert error["code"] in ("malformed", "not_found") and error["message"]
        # What was a message at all leaves the socket open, the rest ends it with a reason.
        try:
            await say(socket, type="ping")
            assert await until_type(socket, "pong")
        except ConnectionClosed as closing:
            assert closing.rcvd is not None and closing.rcvd.reason
            assert closing.rcvd.code == CloseCode.MALFORMED


@pytest.mark.parametrize("size", [64 * 1024 + 1, 1024 * 1024])
async def test_a_frame_over_the_limit_ends_its_socket_and_no_other(
    server: TestRealtime, size: int
) -> None:
    async with open_socket(server, server.key) as socket:
        head = '{"type":"ping","x":"'
        with pytest.raises(ConnectionClosed):
            await socket.send(head + "x" * (size - len(head) - 2) + '"}')
            while True:
                await socket.recv()
        assert socket.close_code in (1009, CloseCode.MALFORMED)


async def test_a_socket_without_the_protocol_is_told_so(server: TestRealtime) -> None:
    url = server.url.replace("http", "ws") + SOCKET_PATH
    async with connect(url, compression=None, proxy=None) as socket:
        await until_closed(socket)
        assert socket.close_code == CloseCode.UNSUPPORTED_PROTOCOL


# Values ------------------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


IMPOSSIBLE: dict[str, Callable[[], object]] = {
    "nan": lambda: float("nan"),
    "infinity": lambda: {"deep": [float("-inf")]},
    "nul": lambda: "a\x00b",
    "a nul in a key": lambda: {"a\x00b": 1},
    "a lone surrogate": lambda: "\ud800",
    "too large an integer": lambda: 2**60,
    "an object without a JSON form": lambda: object(),
    "deep nesting": lambda: nested(10_000),
    "too much": lambda: "x" * (10 * 1024 * 1024),
}


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "output", IMPOSSIBLE.values(), ids=[name.replace(" ", "-") for name in IMPOSSIBLE]
)
async def test_an_output_that_cannot_be_stored_fails_its_run_once_and_clearly(
    bench: Bench, output: Callable[[], object]
) -> None:
    async def returns() -> object:
        return output()

    made = defined(returns, retry={"max_attempts": 3})
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, row.attempt, row.output) == ("FAILED", 1, None)
    error = error_of(row)
    assert error["code"] in ("OUTPUT_INVALID", "OUTPUT_TOO_LARGE")
    assert error["message"].startswith("output"), error


@pytest.mark.parametrize(
    "value", list(IMPOSSIBLE.values())[:7], ids=[n.replace(" ", "-") for n in list(IMPOSSIBLE)[:7]]
)
async def test_a_payload_or_chunk_that_cannot_be_stored_is_refused_where_it_is_written(
    server: TestRealtime, value: Callable[[], object]
) -> None:
    async with client_of(server, server.key) as client:
        with pytest.raises(InvalidValueError):
            await client.tasks.trigger("any", value())
        with pytest.raises(InvalidValueError):
            await client.streams.append("any", value(), target=NOBODY)


@pytest.mark.parametrize("text", ["NaN", '"\\u0000"', '"\\ud800"', "[" * 100 + "]" * 100, "1e999"])
async def test_a_server_refuses_values_that_a_client_should_have(
    server: TestRealtime, bench: Bench, text: str
) -> None:
    async def known() -> None: ...

    made = defined(known)
    async with bench.worker(made), server.client() as http:
        body = {"payload": text}
        answer = await http.post(f"/api/v1/tasks/{made.id}/trigger", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed"), answer.text
