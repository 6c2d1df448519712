"""Declaring schedules, and calls that make them, against a real server."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any, cast

import anyio.to_thread
import pytest

from runwire import (
    AsyncRunwire,
    ConflictError,
    Context,
    NotFoundError,
    Runwire,
    ScheduledTaskPayload,
    TaskError,
    schedules,
)
from runwire._cron import CronOptions, cron_options
from runwire.errors import MalformedError
from runwire.tasks import AnyTask, task
from runwire_engine.schedules import ScheduleSpec
from tests.support.postgres import TestServer
from tests.support.server import TestRealtime, running_realtime

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
async def shared(postgres: TestServer, anyio_backend: str) -> AsyncGenerator[TestRealtime]:
    dsn = postgres.create_database()
    async with running_realtime(dsn) as realtime:
        yield realtime
    postgres.drop_database(dsn)


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("digest", "report")


@pytest.fixture
async def client(server: TestRealtime) -> AsyncGenerator[AsyncRunwire]:
    async with AsyncRunwire(api_url=server.url, access_token=server.key) as opened:
        yield opened


# Declaring --------------------------------------------------------------------------------------


def test_a_task_declares_its_cron_as_text_or_with_options() -> None:
    @schedules.task(id="short", cron="0 */2 * * *", retry={"max_attempts": 2})
    async def short(payload: ScheduledTaskPayload) -> None: ...

    @schedules.task(
        id="long",
        cron={
            "pattern": "0 9 * * 1",
            "timezone": "Europe/Berlin",
            "environments": ["production"],
            "window": "30m",
            "missed": "all",
        },
    )
    def long(payload: ScheduledTaskPayload) -> None: ...

    assert short.cron == CronOptions("0 */2 * * *") and short.retry.max_attempts == 2
    assert long.cron == CronOptions("0 9 * * 1", "Europe/Berlin", ("production",), "30m", "all")
    assert long.cron is not None
    assert long.cron.holds_in("production") and not long.cron.holds_in("dev")


def test_a_scheduled_task_may_wait_for_schedules_made_by_calls() -> None:
    @schedules.task(id="waiting")
    async def waiting(payload: ScheduledTaskPayload) -> None: ...

    @task(id="plain")
    async def plain() -> None: ...

    assert waiting.cron is None and plain.cron is None


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("* * * * * *", "five fields"),
        ("@daily", "five fields"),
        ({"timezone": "UTC"}, "pattern"),
        ({"pattern": "* * * * *", "zone": "UTC"}, "no option zone"),
        ({"pattern": "* * * * *", "missed": "some"}, "newest, all"),
    ],
)
def test_a_cron_that_cannot_be_is_refused_where_it_is_written(cron: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        cron_options(cron)


@pytest.mark.parametrize("form", ["annotated", "bare", "none"])
def test_the_payload_is_an_object_also_where_it_is_not_annotated(form: str) -> None:
    async def annotated(payload: ScheduledTaskPayload, ctx: Context) -> None: ...

    async def bare(when) -> None:  # type: ignore[no-untyped-def]  # as a user may write it
        ...

    async def none(ctx: Context) -> None: ...

    functions: dict[str, Any] = {"annotated": annotated, "bare": bare, "none": none}
    made = cast(AnyTask, schedules.task(id=form, cron="0 0 * * *")(functions[form]))
    text = (
        '{"timestamp":"2026-03-02T09:00:00.000Z","timezone":"UTC","scheduleId":"sched_1",'
        '"upcoming":["2026-03-03T09:00:00.000Z"],"type":"DECLARATIVE"}'
    )
    parsed = made.parse_payload(text)
    if form == "none":
        assert parsed is None
        return
    assert isinstance(parsed, ScheduledTaskPayload)
    assert parsed.timestamp == NOW and parsed.last_timestamp is None
    assert parsed.upcoming[0].day == 3 and parsed.type == "DECLARATIVE"
    # A run of it can be started by hand, too.
    by_hand = made.dump_payload(ScheduledTaskPayload(timestamp=NOW, schedule_id="by hand"))
    assert made.parse_payload(by_hand) == ScheduledTaskPayload(timestamp=NOW, schedule_id="by hand")


# Calls ------------------------------------------------------------------------------------------


async def test_a_schedule_is_made_changed_switched_and_deleted(client: AsyncRunwire) -> None:
    made = await client.schedules.create(
        task="digest",
        cron="0 9 * * 1",
        deduplication_key="digest:user_42",
        timezone="America/New_York",
        external_id="user_42",
        window="50%",
    )
    assert made.type == "IMPERATIVE" and made.active and made.external_id == "user_42"
    assert made.next_run is not None and made.next_run > datetime.now(UTC)
    assert (made.cron, made.timezone, made.window) == ("0 9 * * 1", "America/New_York", "50%")
    assert made.last_run is None and made.error is None and not made.suspended
    changed = await client.schedules.update(made.id, task="report", window=None)
    assert changed.task == "report" and changed.window is None and changed.cron == made.cron
    still = await client.schedules.deactivate(made.id)
    assert not still.active and still.next_run is None
    assert (await client.schedules.activate(made.id)).next_run == made.next_run
    again = await client.schedules.create(
        task="digest", cron="0 10 * * *", deduplication_key="digest:user_42"
    )
    assert again.id == made.id and await client.schedules.retrieve(made.id) == again
    await client.schedules.del_(made.id)
    with pytest.raises(NotFoundError):
        await client.schedules.retrieve(made.id)


async def test_all_schedules_are_found_over_pages(client: AsyncRunwire) -> None:
    made = [
        await client.schedules.create(task="digest", cron="0 9 * * 1", deduplication_key=f"k{n}")
        for n in range(5)
    ]
    assert [each async for each in client.schedules.list(per_page=2)] == made
    page = await client.schedules.list(per_page=2).page(3)
    assert page.schedules == tuple(made[4:])
    assert (page.number, page.pages, page.count) == (3, 3, 5)


async def test_what_the_server_refuses_is_raised(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    with pytest.raises(MalformedError, match="five fields"):
        await client.schedules.create(task="digest", cron="* * * * * *", deduplication_key="k")
    with pytest.raises(NotFoundError, match="unheard-of"):
        await client.schedules.create(task="unheard-of", cron="0 9 * * 1", deduplication_key="k")
    with pytest.raises(TypeError, match="deduplication_key"):
        await client.schedules.update("sched_x", deduplication_key="k")  # type: ignore[call-arg]
    spec = ScheduleSpec("digest", "0 9 * * 1", "digest")
    await server.services.engine.schedules.declare(server.environment_id, [spec], ["digest"])
    [declared] = [each async for each in client.schedules.list()]
    with pytest.raises(ConflictError, match="code of task"):
        await client.schedules.del_(declared.id)


async def test_blocking_code_has_the_same_calls(server: TestRealtime) -> None:
    def work() -> None:
        with Runwire(api_url=server.url, access_token=server.key) as client:
            made = client.schedules.create(
                task="digest", cron="0 9 * * 1", deduplication_key="k", missed="all"
            )
            assert client.schedules.update(made.id, cron="0 8 * * 1").cron == "0 8 * * 1"
            assert not client.schedules.deactivate(made.id).active
            now = client.schedules.activate(made.id)
            assert list(client.schedules.list(per_page=1)) == [client.schedules.retrieve(made.id)]
            assert now.missed == "all"
            client.schedules.del_(made.id)
            assert list(client.schedules.list()) == []
            assert "Europe/Berlin" in client.schedules.timezones(exclude_utc=True)

    await anyio.to_thread.run_sync(work)
