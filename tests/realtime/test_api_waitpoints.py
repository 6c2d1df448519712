"""Wait tokens over HTTP: created by backends and runs; completed by keys, browsers, webhooks."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from runwire import AsyncRunwire, ForbiddenError, Runwire, task, wait
from runwire.errors import NotFoundError, WaitTimeoutError
from runwire_realtime.errors import RefusedError
from runwire_realtime.tokens import Tokens
from tests.support.server import TestRealtime
from tests.support.working import Bench, opened_bench

pytestmark = pytest.mark.anyio


@task(id="waiting-for-token", retry={"max_attempts": 1})
async def waiting(payload: str) -> list[Any]:
    result = await wait.for_token(payload)
    return [result.ok, result.output, result.error.name if result.error else None]


@task(id="making-a-token", retry={"max_attempts": 1})
def making() -> Any:
    token = wait.sync.create_token(timeout="1h", tags=["mine"])
    wait.sync.complete_token(token, {"by": "itself"})
    return wait.sync.for_token(token).unwrap()


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened, opened.worker(waiting, making):
        yield opened


async def test_a_run_goes_on_with_what_a_backend_completes(
    client: AsyncRunwire, bench: Bench
) -> None:
    token = await client.wait.create_token()
    handle = await client.tasks.trigger(waiting, token.id)
    await bench.until(handle.id, "WAITING")
    await client.wait.complete_token(token, {"approved": True})
    await client.wait.complete_token(token, "too late")
    run = await client.runs.poll(handle, interval=0.02)
    assert run.output == [True, {"approved": True}, None]
    state = await client.wait.retrieve_token(token)
    assert (state.status, state.output) == ("COMPLETED", {"approved": True})


async def test_a_browser_completes_just_its_token(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    mine, other = [await client.wait.create_token(timeout=None) for _ in range(2)]
    assert mine.public_access_token is not None
    async with AsyncRunwire(api_url=server.url, access_token=mine.public_access_token) as person:
        with pytest.raises(ForbiddenError):
            await person.wait.complete_token(other, 1)
        with pytest.raises(ForbiddenError):
            await person.wait.create_token()
        await person.wait.complete_token(mine, 1)
    assert (await client.wait.retrieve_token(mine)).output == 1
    assert (await client.wait.retrieve_token(other)).status == "WAITING"


async def test_a_webhook_completes_a_token_by_its_address(client: AsyncRunwire) -> None:
    token = await client.wait.create_token()
    assert token.url is not None
    async with httpx.AsyncClient() as webhook:
        stranger = token.url[:-4] + "0000"
        assert (await webhook.post(stranger, json={})).status_code == 401
        other = token.url.replace(token.id, "waitpoint_00000000000000000000")
        assert (await webhook.post(other, json={})).status_code == 401
        for _ in range(2):
            answer = await webhook.post(token.url, json={"paid": 7})
            assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert (await client.wait.retrieve_token(token)).output == {"paid": 7}


async def test_a_token_that_nobody_completes_times_out(client: AsyncRunwire, bench: Bench) -> None:
    token = await client.wait.create_token(timeout=0.2)
    handle = await client.tasks.trigger(waiting, token.id)
    run = await client.runs.poll(handle, interval=0.02)
    assert run.output == [False, None, "WaitTimeoutError"]
    await client.wait.complete_token(token, 1)
    assert (await client.wait.retrieve_token(token)).status == "TIMED_OUT"
    with pytest.raises(WaitTimeoutError):
        wait.TokenResult[int](token.id, ok=False).unwrap()


async def test_a_def_task_makes_completes_and_waits_for_a_token(client: AsyncRunwire) -> None:
    run = await client.runs.poll(await client.tasks.trigger(making), interval=0.02)
    assert run.output == {"by": "itself"}


async def test_a_key_leads_to_the_same_token_while_it_is_good(
    client: AsyncRunwire, bench: Bench
) -> None:
    first = await client.wait.create_token(idempotency_key="order-1")
    again = await client.wait.create_token(idempotency_key="order-1")
    assert (first.id, first.is_cached, again.is_cached) == (again.id, False, True)
    await bench.sql("update runwire.waitpoints set idempotency_expires_at = now()")
    third = await client.wait.create_token(idempotency_key="order-1")
    assert third.id != first.id and not third.is_cached


async def test_tokens_are_listed_by_status_tag_and_page(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    made = [await client.wait.create_token(tags=[f"n:{number}", "all"]) for number in range(3)]
    await client.wait.complete_token(made[0])
    listed = await client.wait.list_tokens(tags="all")
    assert [token.id for token in listed] == [token.id for token in reversed(made)]
    assert [t.id for t in await client.wait.list_tokens(status="COMPLETED")] == [made[0].id]
    assert [t.id for t in await client.wait.list_tokens(tags="n:1")] == [made[1].id]
    async with server.client() as http:
        seen: list[str] = []
        after = ""
        while True:
            query = {"page[size]": "2", **({"page[after]": after} if after else {})}
            page = (await http.get("/api/v1/waitpoints/tokens", params=query)).json()
            seen += [token["id"] for token in page["data"]]
            after = page["pagination"].get("next")
            if not after:
                break
        assert seen == [token.id for token in reversed(made)]
        bad = await http.get("/api/v1/waitpoints/tokens", params={"filter[status]": "DONE"})
        assert bad.status_code == 400


async def test_what_cannot_be_is_refused_with_what_to_do(
    client: AsyncRunwire, server: TestRealtime
) -> None:
    with pytest.raises(NotFoundError):
        await client.wait.complete_token("waitpoint_00000000", 1)
    async with server.client() as http:
        for body in ({"timeout": "soon"}, {"timeout": -1}, {"tags": ["x"] * 11}):
            answer = await http.post("/api/v1/waitpoints/tokens", json=body)
            assert answer.status_code == 400, body
        then = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        answer = await http.post("/api/v1/waitpoints/tokens", json={"timeout": then})
        assert answer.status_code == 200


async def test_blocking_code_has_the_same_calls(client: AsyncRunwire, server: TestRealtime) -> None:
    def blocking() -> str:
        with Runwire(api_url=server.url, access_token=server.key) as runwire:
            token = runwire.wait.create_token()
            runwire.wait.complete_token(token, 5)
            assert runwire.wait.list_tokens(status=["COMPLETED"])[0].id == token.id
            state = runwire.wait.retrieve_token(token)
            return f"{state.status} {state.output}"

    assert await anyio.to_thread.run_sync(blocking) == "COMPLETED 5"


def test_an_address_belongs_to_one_token_of_one_environment() -> None:
    tokens = Tokens("a" * 40)
    address = tokens.callback(7, "waitpoint_a")
    assert tokens.verify_callback(address, "waitpoint_a") == 7
    assert Tokens("b" * 40, "a" * 40).verify_callback(address, "waitpoint_a") == 7
    for text, waitpoint in (
        (address, "waitpoint_b"),
        (address.replace("7.", "8.", 1), "waitpoint_a"),
        ("", "waitpoint_a"),
        ("7.x.y", "waitpoint_a"),
        (address + "é", "waitpoint_a"),
    ):
        with pytest.raises(RefusedError, match="not valid"):
            tokens.verify_callback(text, waitpoint)
