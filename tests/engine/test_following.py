"""Which runs a feed holds when it resumes: those that are not over, however many are."""

import pytest

from runwire_engine.database import Database
from runwire_engine.following import Following
from tests.support.run_rows import insert_run

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("limit", [100, 4, 2])
async def test_open_runs_of_a_tag_are_found_by_whichever_way_is_short(
    database: Database, env: int, limit: int
) -> None:
    wanted: list[str] = []
    for number in range(12):
        is_open = number % 3 == 0
        tags = ("own", "more") if number % 2 == 0 else ("own",)
        status = "EXECUTING" if is_open else "COMPLETED"
        run_id = await insert_run(database, env, status=status, tags=tags)
        await _list(database)
        if is_open and "more" in tags:
            wanted.append(run_id)
    for _ in range(3):
        await insert_run(database, env, tags=("other",))
    members = await Following(database).tagged(env, ["own", "more"], None, limit, is_open=True)
    found = [each.run_id for each in members]
    assert found == list(reversed(wanted))[: len(found)]
    assert not any(each.is_final for each in members)
    if limit >= 4:
        assert len(found) == len(wanted)


@pytest.mark.parametrize(
    ("statuses", "found"),
    [
        (None, {"EXECUTING", "COMPLETED", "FAILED", "WAITING"}),
        (["FAILED"], {"FAILED"}),
        (["EXECUTING", "WAITING"], {"EXECUTING", "WAITING"}),
        (["FAILED", "WAITING"], {"FAILED", "WAITING"}),
        (["COMPLETED", "FAILED"], {"COMPLETED", "FAILED"}),
    ],
)
async def test_recent_runs_are_found_by_their_statuses(
    database: Database, env: int, statuses: list[str] | None, found: set[str]
) -> None:
    made = {
        await insert_run(database, env, status=status): status
        for status in ("EXECUTING", "COMPLETED", "FAILED", "WAITING")
    }
    members = await Following(database).recent(env, None, statuses, None, 100)
    assert {made[each.run_id] for each in members} == found
    assert all(each.is_final == (made[each.run_id] in {"COMPLETED", "FAILED"}) for each in members)


async def _list(database: Database) -> None:
    """List every run by its tags, as a trigger does."""
    async with database.transaction() as tx:
        await tx.connection.execute(
            "insert into runwire.run_tags (environment_id, tag, created_at, run_id)"
            " select environment_id, unnest(tags), created_at, id from runwire.runs"
            " on conflict do nothing"
        )
