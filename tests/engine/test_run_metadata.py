"""Changing the metadata of runs, against a real Postgres."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from runwire import _metadata
from runwire.errors import FencedError, InvalidValueError
from runwire.wire import Json, JsonObject
from runwire_engine.database import Database, Row
from runwire_engine.doorbell import Doorbell
from runwire_engine.errors import RunFinalError, RunNotFoundError
from runwire_engine.run_metadata import MetadataAnswer, MetadataWrite, RunMetadata
from tests.support.faultproxy import fault_proxy
from tests.support.postgres import opened_database
from tests.support.run_rows import insert_run, set_run

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running(metadata: RunMetadata) -> AsyncGenerator[RunMetadata]:
    """Run the flusher of metadata for the length of a block."""
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(metadata.run)
            yield metadata
            metadata.close()


@pytest.fixture
async def metadata(
    database: Database, database_url: str, anyio_backend: str
) -> AsyncGenerator[RunMetadata]:
    """Metadata that takes writes; its bells are collected, not sent."""
    async with running(RunMetadata(database, Doorbell(database_url))) as opened:
        yield opened


def set_(key: str, value: Json) -> JsonObject:
    return {"type": "set", "key": key, "value": value}


def increment(key: str, value: float = 1) -> JsonObject:
    return {"type": "increment", "key": key, "value": value}


async def document(metadata: RunMetadata, env: int, run_id: str) -> Json:
    body = await metadata.retrieve(env, run_id)
    return None if body is None else json.loads(body)


async def events(database: Database, run_id: str) -> list[Row]:
    async with database.transaction() as tx:
        cursor = await tx.connection.execute(
            "select revision, type, delta from runwire.run_events where run_id = %s"
            " order by revision",
            (run_id,),
        )
        return await cursor.fetchall()


async def test_operations_change_the_document_and_make_a_revision(
    metadata: RunMetadata, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    assert await document(metadata, env, run_id) is None
    write = MetadataWrite(run_id, (set_("a", 1), increment("n", 2)), execution=1)
    answer = await metadata.apply(env, write)
    assert answer == MetadataAnswer(2, len('{"a":1,"n":2}'))
    assert await document(metadata, env, run_id) == {"a": 1, "n": 2}
    (event,) = await events(database, run_id)
    assert (event["revision"], event["type"]) == (2, "metadata")
    assert json.loads(event["delta"]) == {"metadata": [set_("a", 1), increment("n", 2)]}


async def test_the_deltas_turn_each_revision_into_the_next(
    metadata: RunMetadata, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    async with anyio.create_task_group() as tasks:
        for n in range(40):
            operations = (increment("n"), {"type": "append", "key": "l", "value": n})
            tasks.start_soon(metadata.apply, env, MetadataWrite(run_id, operations))
    held: JsonObject = {}
    history = await events(database, run_id)
    for event in history:
        held = _metadata.apply(held, json.loads(event["delta"])["metadata"])
    assert held == await document(metadata, env, run_id)
    assert held["n"] == 40 and held["l"] == list(range(40))
    # Far fewer revisions than writes: one for each flush.
    assert [event["revision"] for event in history] == list(range(2, 2 + len(history)))
    assert len(history) < 10


async def test_several_writers_of_one_run_lose_no_increment(
    database: Database, database_url: str, env: int
) -> None:
    run_id = await insert_run(database, env)

    async def write() -> None:
        async with running(RunMetadata(database, Doorbell(database_url))) as metadata:
            for _ in range(25):
                await metadata.apply(env, MetadataWrite(run_id, (increment("n"),)))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(write)
    reader = RunMetadata(database, Doorbell(database_url))
    assert await document(reader, env, run_id) == {"n": 100}


async def test_one_refused_write_disturbs_no_other_and_leaves_no_trace(
    metadata: RunMetadata, database: Database, env: int
) -> None:
    ours, other = await insert_run(database, env), await insert_run(database, env)
    answers = await metadata.apply_many(
        env,
        [
            MetadataWrite(ours, (set_("a", 1),), execution=1),
            MetadataWrite(ours, (set_("a", 2), set_("big", "x" * 262_144)), execution=1),
            MetadataWrite(ours, (set_("a", 3), {"type": "rename"})),
            MetadataWrite(ours, (set_("b", 1),), execution=9),
            MetadataWrite("run_00000000000", (set_("b", 1),)),
            MetadataWrite(other, (set_("a", 4),), execution=1, writer=ours),
            MetadataWrite(other, (set_("a", 5),), execution=2, writer=ours),
        ],
    )
    assert [type(answer) for answer in answers] == [
        MetadataAnswer,
        InvalidValueError,
        InvalidValueError,
        FencedError,
        RunNotFoundError,
        MetadataAnswer,
        FencedError,
    ]
    assert isinstance(answers[1], InvalidValueError) and answers[1].code == "too_large"
    assert await document(metadata, env, ours) == {"a": 1}
    assert await document(metadata, env, other) == {"a": 4}


async def test_the_largest_document_fits(
    metadata: RunMetadata, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    text = "x" * (262_144 - len('{"a":""}'))
    answer = await metadata.apply(env, MetadataWrite(run_id, (set_("a", text),)))
    assert answer.bytes == 262_144
    (event,) = await events(database, run_id)
    assert json.loads(event["delta"]) == {"set": {"metadata": {"$large": {"bytes": 262_144}}}}


async def test_an_execution_that_lost_its_run_changes_nothing(
    metadata: RunMetadata, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    await set_run(database, env, run_id, "EXECUTING", 2)
    with pytest.raises(FencedError):
        await metadata.apply(env, MetadataWrite(run_id, (set_("a", 1),), execution=1))
    assert await document(metadata, env, run_id) is None


async def test_metadata_of_a_final_run_stays_open_for_an_hour(
    metadata: RunMetadata, database: Database, env: int
) -> None:
    fresh = await insert_run(database, env, status="COMPLETED", finished_ago=3500)
    old = await insert_run(database, env, status="COMPLETED", finished_ago=3700)
    await metadata.apply(env, MetadataWrite(fresh, (set_("a", 1),)))
    with pytest.raises(RunFinalError):
        await metadata.apply(env, MetadataWrite(old, (set_("a", 1),)))


async def test_what_changes_nothing_makes_no_revision(
    metadata: RunMetadata, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    await metadata.apply(env, MetadataWrite(run_id, (set_("a", 1),)))
    answer = await metadata.apply(env, MetadataWrite(run_id, (set_("a", 1),)))
    assert answer.revision == 2
    assert len(await events(database, run_id)) == 1


async def test_replace_puts_a_whole_document_in_place(
    metadata: RunMetadata, database: Database, env: int
) -> None:
    run_id = await insert_run(database, env)
    await metadata.apply(env, MetadataWrite(run_id, (set_("a", 1),)))
    await metadata.replace(env, run_id, {"b": 2})
    assert await document(metadata, env, run_id) == {"b": 2}


@pytest.mark.parametrize("after", [True, False], ids=["reply lost", "commit lost"])
async def test_a_commit_without_an_answer_is_not_applied_twice(
    database: Database, database_url: str, env: int, after: bool
) -> None:
    run_id = await insert_run(database, env)
    async with (
        fault_proxy(database_url) as proxy,
        opened_database(proxy.dsn(database_url)) as behind,
        running(RunMetadata(behind, Doorbell(database_url))) as metadata,
    ):
        for n in range(5):
            proxy.cut_next_commit(after=after)
            answers = await metadata.apply_many(
                env,
                [
                    MetadataWrite(run_id, (increment("n"),), execution=1),
                    MetadataWrite(run_id, (increment("n"),), execution=9),
                ],
            )
            assert isinstance(answers[0], MetadataAnswer) and answers[0].revision == n + 2
            assert isinstance(answers[1], FencedError)
        assert proxy.commits_cut == 5
        assert await document(metadata, env, run_id) == {"n": 5}
