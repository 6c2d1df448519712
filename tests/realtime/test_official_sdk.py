"""The official Trigger.dev SDK, unmodified, against a server and a worker of ours.

What it returns went through its own parser. What it is not offered: docs/reference/official-sdk.md.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from runwire import ScheduledTaskPayload, queue, schedules, streams, task, wait
from tests.support.official import OfficialSdk, SdkError, is_installed, items, official_sdk
from tests.support.postgres import TestServer
from tests.support.server import running_realtime
from tests.support.working import WAIT, Bench, opened_bench

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not is_installed(), reason="`make setup` installs the official SDK"),
]

approval = streams.input("approval", dict[str, bool])


@task(id="sdk-echo", retry={"max_attempts": 1})
async def echo(payload: Any) -> Any:
    return payload


@task(id="sdk-mail", retry={"max_attempts": 1}, queue=queue("sdk/mails", concurrency_limit=5))
async def mail(payload: Any) -> None:
    pass


@task(id="sdk-token", retry={"max_attempts": 1})
async def token_task(payload: str) -> Any:
    return (await wait.for_token(payload)).output


@task(id="sdk-input", retry={"max_attempts": 1})
async def input_task(payload: None) -> bool:
    return (await approval.wait()).unwrap()["ok"]


@task(id="sdk-failing", retry={"max_attempts": 1})
async def failing(payload: str) -> None:
    raise ValueError(payload)


@schedules.task(id="sdk-digest", retry={"max_attempts": 1})
async def digest(payload: ScheduledTaskPayload) -> str | None:
    return payload.external_id


@dataclass
class Stand:
    """The SDK, and what it talks to."""

    sdk: OfficialSdk
    bench: Bench


@pytest.fixture(scope="module")
async def stand(postgres: TestServer, anyio_backend: str) -> AsyncGenerator[Stand]:
    dsn = postgres.create_database()
    async with (
        opened_bench(dsn) as bench,
        bench.worker(echo, mail, token_task, input_task, failing, digest),
        running_realtime(dsn) as server,
        official_sdk(server.url, server.key) as sdk,
    ):
        yield Stand(sdk, bench)
    postgres.drop_database(dsn)


@pytest.fixture
def sdk(stand: Stand) -> OfficialSdk:
    return stand.sdk


@pytest.fixture
def bench(stand: Stand) -> Bench:
    return stand.bench


def sketch(key: str, **changes: Any) -> dict[str, Any]:
    return {"task": "sdk-digest", "cron": "0 9 1 1 *", "deduplicationKey": key, **changes}


async def test_a_schedule_is_made_once_for_its_key_changed_switched_and_deleted(
    sdk: OfficialSdk,
) -> None:
    berlin = {"timezone": "Europe/Berlin", "externalId": "u1", "window": "30m"}
    made = await sdk("schedules.create", sketch("k", **berlin))
    assert (made["type"], made["active"], made["timezone"]) == ("IMPERATIVE", True, "Europe/Berlin")
    assert (made["externalId"], made["window"]) == ("u1", "30m")
    assert made["nextRun"].endswith("-01-01T08:00:00.000Z")
    assert await sdk("schedules.retrieve", made["id"]) == made
    again = await sdk("schedules.create", sketch("k", cron="0 10 1 1 *"))
    assert (again["id"], again["generator"]["expression"]) == (made["id"], "0 10 1 1 *")
    assert again["timezone"] == "UTC" and "externalId" not in again
    changes = {"task": "sdk-digest", "cron": "0 11 1 1 *", "externalId": "u2"}
    changed = await sdk("schedules.update", made["id"], changes)
    assert changed["externalId"] == "u2" and changed["nextRun"].endswith("T11:00:00.000Z")
    still = await sdk("schedules.deactivate", made["id"])
    assert not still["active"] and "nextRun" not in still
    assert (await sdk("schedules.activate", made["id"]))["active"]
    assert await sdk("schedules.del", made["id"]) == {"id": made["id"]}
    with pytest.raises(SdkError) as gone:
        await sdk("schedules.retrieve", made["id"])
    assert gone.value.status == 404


async def test_schedules_are_listed_page_by_page(sdk: OfficialSdk) -> None:
    made = [(await sdk("schedules.create", sketch(f"page-{n}")))["id"] for n in range(5)]
    listed = [each["id"] for each in await sdk.all("schedules.list", {"perPage": 2})]
    assert [each for each in listed if each in made] == made
    first = await sdk("schedules.list", {"page": 1, "perPage": 2})
    assert first["pagination"]["totalPages"] == -(-first["pagination"]["count"] // 2)


async def test_the_run_of_a_tick_says_which_schedule_it_is_of(
    sdk: OfficialSdk, bench: Bench
) -> None:
    made = await sdk("schedules.create", sketch("tick", externalId="user_42"))
    due = "update runwire.schedules set next_at = now(), due_at = now() where id = %(id)s"
    await bench.sql(due, id=made["id"])
    with anyio.fail_after(WAIT):
        while not (found := (await sdk("runs.list", {"taskIdentifier": "sdk-digest"}))["data"]):
            await anyio.sleep(0.05)  # servers look for ticks once a second
    run = await sdk("runs.poll", found[0]["id"], {"pollIntervalMs": 20})
    assert run["output"] == "user_42"
    assert run["schedule"]["id"] == made["id"]
    assert run["schedule"]["deduplicationKey"] == "tick"


async def test_time_zones_begin_with_utc_unless_that_is_left_out(sdk: OfficialSdk) -> None:
    zones = (await sdk("schedules.timezones"))["timezones"]
    assert zones[0] == "UTC" and "Europe/Berlin" in zones
    assert (await sdk("schedules.timezones", {"excludeUtc": True}))["timezones"] == zones[1:]


async def test_a_wait_token_is_made_once_for_its_key_and_completed_once(sdk: OfficialSdk) -> None:
    options = {"timeout": "10m", "idempotencyKey": "doc", "idempotencyKeyTTL": "1h", "tags": ["a"]}
    token = await sdk("wait.createToken", options)
    cached = await sdk("wait.createToken", options)
    assert (token["isCached"], cached["isCached"], cached["id"]) == (False, True, token["id"])
    waiting = await sdk("wait.retrieveToken", token["id"])
    assert (waiting["status"], waiting["tags"]) == ("WAITING", ["a"])
    public = token["publicAccessToken"]
    assert await sdk("wait.completeToken", token, {"ok": True}, token=public) == {"success": True}
    assert await sdk("wait.completeToken", token["id"], "later") == {"success": True}
    completed = await sdk("wait.retrieveToken", token["id"])
    assert (completed["status"], completed["output"]) == ("COMPLETED", {"ok": True})


async def test_a_token_that_times_out_is_an_error_to_who_reads_it(
    sdk: OfficialSdk, bench: Bench
) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    token = await sdk("wait.createToken", {"timeout": at})
    assert (await sdk("wait.retrieveToken", token["id"]))["timeoutAt"][:19] == at.isoformat()[:19]
    statement = "update runwire.waitpoints set timeout_at = now() where id = %(id)s"
    await bench.sql(statement, id=token["id"])
    with anyio.fail_after(WAIT):
        while (read := await sdk("wait.retrieveToken", token["id"]))["status"] == "WAITING":
            await anyio.sleep(0.05)  # until a sweep has found it
    assert read["status"] == "TIMED_OUT" and "error" in read and "output" not in read


async def test_wait_tokens_are_listed_by_what_is_asked(sdk: OfficialSdk) -> None:
    made = [(await sdk("wait.createToken", {"tags": ["list"]}))["id"] for _ in range(5)]
    await sdk("wait.completeToken", made[0])
    newest = list(reversed(made))
    listed = await sdk.all("wait.listTokens", {"tags": ["list"], "limit": 2})
    assert [each["id"] for each in listed] == newest
    span: dict[str, Any] = {"from": datetime.now(UTC) - timedelta(hours=1), "to": datetime.now(UTC)}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"status": "COMPLETED"}, made[:1]),
        ({"status": ["WAITING", "COMPLETED"]}, newest),
        ({"period": "24h"}, newest),
        (span, newest),
    ]
    for filters, expected in cases:
        page = await sdk("wait.listTokens", {"tags": ["list"], **filters})
        assert [each["id"] for each in page["data"]] == expected


async def test_a_run_goes_on_with_what_completes_its_token(sdk: OfficialSdk, bench: Bench) -> None:
    token = await sdk("wait.createToken")
    handle = await sdk("tasks.trigger", "sdk-token", token["id"])
    await bench.until(handle["id"], "WAITING")
    await sdk("wait.completeToken", token, {"status": "approved"})
    run = await sdk("runs.poll", handle["id"], {"pollIntervalMs": 20})
    assert run["output"] == {"status": "approved"}


async def test_a_run_gets_its_input_with_the_token_of_its_trigger(
    sdk: OfficialSdk, bench: Bench
) -> None:
    handle = await sdk("tasks.trigger", "sdk-input")
    await bench.until(handle["id"], "WAITING")
    public = handle["publicAccessToken"]
    await sdk("sendInput", "approval", handle["id"], {"ok": True}, token=public)
    run = await sdk("runs.poll", handle["id"], {"pollIntervalMs": 20})
    assert run["output"] is True
    with pytest.raises(SdkError, match="is over") as late:
        await sdk("sendInput", "approval", handle["id"], {"ok": True})
    assert late.value.status == 422


async def test_queues_are_found_by_id_and_by_name_paused_and_limited(sdk: OfficialSdk) -> None:
    listed = await sdk.all("queues.list", {"perPage": 1})
    assert {("custom", "sdk/mails"), ("task", "sdk-echo")} <= {
        (each["type"], each["name"]) for each in listed
    }
    mails = {"type": "custom", "name": "sdk/mails"}
    found = await sdk("queues.retrieve", mails)
    assert (found["concurrencyLimit"], found["paused"]) == (5, False)
    assert (await sdk("queues.pause", mails))["paused"]
    assert not (await sdk("queues.resume", found["id"]))["paused"]
    limited = await sdk("queues.overrideConcurrencyLimit", mails, 2)
    assert (limited["concurrencyLimit"], limited["concurrency"]["base"]) == (2, 5)
    assert await sdk("queues.resetConcurrencyLimit", mails) == found
    assert (await sdk("queues.retrieve", {"type": "task", "name": "sdk-echo"}))["type"] == "task"
    with pytest.raises(SdkError) as unknown:
        await sdk("queues.pause", {"type": "task", "name": "nobody"})
    assert unknown.value.status == 404


async def test_a_batch_is_sent_from_a_list_and_from_an_iterable(sdk: OfficialSdk) -> None:
    listed = [{"payload": n, "options": {"tags": [f"n{n}"]}} for n in range(3)]
    for given in (listed, items(*listed)):
        handle = await sdk("tasks.batchTrigger", "sdk-echo", given)
        batch = await sdk("batch.retrieve", handle["batchId"], token=handle["publicAccessToken"])
        assert (handle["runCount"], len(batch["runs"])) == (3, 3)
        runs = [await sdk("runs.poll", run, {"pollIntervalMs": 20}) for run in batch["runs"]]
        assert [(run["output"], run["tags"]) for run in runs] == [(n, [f"n{n}"]) for n in range(3)]


async def test_a_batch_of_several_tasks_is_made_once_for_its_key(sdk: OfficialSdk) -> None:
    both = [{"id": "sdk-echo", "payload": 1}, {"id": "sdk-mail", "payload": 2}]
    first, second = [
        await sdk("batch.trigger", both, {"idempotencyKey": "mixed"}) for _ in range(2)
    ]
    assert first["batchId"] == second["batchId"]
    streamed = await sdk("batch.trigger", items(*both))
    assert streamed["batchId"] != first["batchId"] and streamed["runCount"] == 2
    with pytest.raises(SdkError, match="no worker has announced") as unknown:
        await sdk("tasks.batchTrigger", "sdk-nobody", [{"payload": 1}])
    assert unknown.value.name == "BatchTriggerError"


async def test_every_option_of_a_trigger_arrives(sdk: OfficialSdk, bench: Bench) -> None:
    options = {
        "tags": ["a", "b"],
        "delay": "1h",
        "ttl": "10m",
        "queue": "sdk/mails",
        "concurrencyKey": "user_1",
        "priority": 5,
        "maxAttempts": 4,
        "maxDuration": 60,
        "metadata": {"step": 1},
    }
    at = datetime.now(UTC)
    handle = await sdk("tasks.trigger", "sdk-echo", {"at": at}, options)
    run = await sdk("runs.retrieve", handle["id"])
    assert (run["status"], run["tags"], run["metadata"]) == ("DELAYED", ["a", "b"], {"step": 1})
    assert (run["ttl"], run["payload"]) == ("600s", {"at": at.isoformat()[:23] + "Z"})
    row = await bench.row(handle["id"])
    assert (row.queue, row.concurrency_key, row.priority) == ("sdk/mails", "user_1", 5)
    assert (row.max_attempts, row.max_duration) == (4, 60)
    await sdk("runs.cancel", handle["id"])
    debounced = [
        await sdk("tasks.trigger", "sdk-echo", n, {"debounce": {"key": "d", "delay": "1h"}})
        for n in range(2)
    ]
    assert debounced[0]["id"] == debounced[1]["id"]
    await sdk("runs.cancel", debounced[0]["id"])


async def test_a_delayed_run_is_put_off_canceled_and_replayed(sdk: OfficialSdk) -> None:
    handle = await sdk("tasks.trigger", "sdk-echo", {"n": 1}, {"delay": "1h"})
    by_span = await sdk("runs.reschedule", handle["id"], {"delay": "2h"})
    at = datetime.now(UTC) + timedelta(hours=3)
    by_time = await sdk("runs.reschedule", handle["id"], {"delay": at})
    assert by_span["status"] == "DELAYED" and by_time["delayedUntil"][:19] == at.isoformat()[:19]
    assert await sdk("runs.cancel", handle["id"]) == {"id": handle["id"]}
    canceled = await sdk("runs.retrieve", handle["id"])
    assert (canceled["status"], canceled["isCancelled"]) == ("CANCELED", True)
    with pytest.raises(SdkError, match="cannot be rescheduled") as late:
        await sdk("runs.reschedule", handle["id"], {"delay": "2h"})
    assert late.value.status == 422
    same = await sdk("runs.replay", handle["id"])
    assert (await sdk("runs.poll", same["id"], {"pollIntervalMs": 20}))["output"] == {"n": 1}
    other = await sdk("runs.replay", handle["id"], {"payload": {"n": 2}})
    assert (await sdk("runs.poll", other["id"], {"pollIntervalMs": 20}))["output"] == {"n": 2}


async def test_a_key_leads_to_its_run_until_it_is_reset(sdk: OfficialSdk) -> None:
    key = await sdk("idempotencyKeys.create", ["order", "7"], {"scope": "global"})
    first = await sdk("tasks.trigger", "sdk-echo", 1, {"idempotencyKey": key})
    again = await sdk("tasks.trigger", "sdk-echo", 1, {"idempotencyKey": key})
    assert (first["isCached"], again["isCached"], again["id"]) == (False, True, first["id"])
    await sdk("idempotencyKeys.reset", "sdk-echo", key)
    fresh = await sdk("tasks.trigger", "sdk-echo", 1, {"idempotencyKey": key})
    assert not fresh["isCached"] and fresh["id"] != first["id"]
    await sdk("tasks.trigger", "sdk-echo", 1, {"idempotencyKey": "raw"})
    await sdk("idempotencyKeys.reset", "sdk-echo", "raw", {"scope": "global"})
    raw = await sdk("tasks.trigger", "sdk-echo", 1, {"idempotencyKey": "raw"})
    assert not raw["isCached"]


async def test_a_run_that_fails_says_why(sdk: OfficialSdk) -> None:
    handle = await sdk("tasks.trigger", "sdk-failing", "no sea")
    run = await sdk("runs.poll", handle["id"], {"pollIntervalMs": 20})
    assert (run["status"], run["isFailed"], run["attemptCount"]) == ("FAILED", True, 1)
    assert (run["error"]["name"], run["error"]["message"]) == ("ValueError", "no sea")
    assert "no sea" in run["error"]["stackTrace"]


async def test_runs_are_listed_page_by_page(sdk: OfficialSdk) -> None:
    made = [
        (await sdk("tasks.trigger", "sdk-echo", n, {"tags": ["paged"]}))["id"] for n in range(5)
    ]
    listed = await sdk.all("runs.list", {"tag": "paged", "limit": 2})
    assert [run["id"] for run in listed] == list(reversed(made))


async def test_a_browser_starts_a_task_once_with_its_token(sdk: OfficialSdk) -> None:
    token = await sdk("auth.createTriggerPublicToken", "sdk-echo")
    handle = await sdk("tasks.trigger", "sdk-echo", 1, token=token)
    read = handle["publicAccessToken"]
    assert (await sdk("runs.retrieve", handle["id"], token=read))["id"] == handle["id"]
    with pytest.raises(SdkError) as used:
        await sdk("tasks.trigger", "sdk-echo", 1, token=token)
    assert used.value.status == 401


@pytest.mark.parametrize(
    ("call", "args", "status"),
    [
        ("tasks.trigger", ["sdk-echo", "x" * 200_000], 404),
        ("tasks.trigger", ["sdk-echo", 1, {"machine": "small-1x"}], 400),
        ("tasks.trigger", ["sdk-echo", 1, {"region": "eu-central-1"}], 400),
        ("tasks.trigger", ["sdk-echo", 1, {"version": "20260101.1"}], 400),
        ("concurrencyLimits.list", [], 404),
        ("runs.list", [{"queue": {"type": "task", "name": "sdk-echo"}}], 400),
        ("envvars.list", ["project", "dev"], 404),
    ],
)
async def test_what_is_not_offered_is_refused_at_once(
    sdk: OfficialSdk, call: str, args: list[Any], status: int
) -> None:
    with pytest.raises(SdkError) as refused:
        await sdk(call, *args)
    assert refused.value.status == status
