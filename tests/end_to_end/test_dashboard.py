"""A person with a browser: signs in, triggers runs, watches them, reloads in the middle."""

import contextlib
import random
import re
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import pytest
from playwright.async_api import Browser, ViewportSize, expect

from runwire import AsyncRunwire
from tests.end_to_end.dashboard_tasks import NASTY, text_of
from tests.support.pages import (
    API_KEY,
    Server,
    environment_of,
    grown,
    signed_in,
    started,
    stream_text,
    trigger,
    watched,
)
from tests.support.processes import running

pytestmark = [pytest.mark.anyio, pytest.mark.browser]

_TASKS: Final = "tests/end_to_end/dashboard_tasks.py"


async def test_a_run_is_triggered_and_its_text_grows_also_across_a_reload(
    browser: Browser, server: Server
) -> None:
    words, text = 200, text_of(200)
    async with signed_in(browser, server.address) as page:
        await trigger(page, server.address, "drip", f'{{"words": {words}}}', "user:1, slow")
        run = page.get_by_role("article")
        lengths = [await grown(page, 0)]
        for _ in range(3):
            lengths.append(await grown(page, lengths[-1]))
        await expect(run).to_have_attribute("data-status", "EXECUTING")
        assert text.startswith(await stream_text(page, "answer"))

        await page.reload()
        after = await grown(page, 0)
        assert after >= lengths[-1]
        assert text.startswith(await stream_text(page, "answer"))
        await expect(run).to_have_attribute("data-status", "EXECUTING")
        assert await grown(page, after) < len(text)

        await expect(run).to_have_attribute("data-status", "COMPLETED")
        await expect(page.locator("pre[data-stream=answer]")).to_have_text(text.strip())
        assert await stream_text(page, "answer") == text
        await expect(page.locator("pre[data-json=output]")).to_contain_text(f'"written": {words}')
        await expect(page.locator("pre[data-json=metadata]")).to_contain_text(f'"written": {words}')
        for moment in ("Created", "Started", "Stream opened", "Completed"):
            await expect(page.locator(".timeline").get_by_text(moment).first).to_be_visible()
        await expect(run.get_by_role("link", name="user:1")).to_be_visible()


async def test_a_run_that_is_over_shows_the_same_text_to_whoever_comes_late(
    browser: Browser, server: Server
) -> None:
    async with signed_in(browser, server.address) as page:
        await trigger(page, server.address, "drip", '{"words": 20, "pause": 0}')
        done = page.get_by_role("article")
        await expect(done).to_have_attribute("data-status", "COMPLETED")
        await page.reload()
        await expect(page.locator("pre[data-stream=answer]")).to_have_text(text_of(20).strip())
        assert await stream_text(page, "answer") == text_of(20)


async def test_schedules_are_listed_with_their_next_run(browser: Browser, server: Server) -> None:
    nasty = NASTY.replace("\u202e", "")
    async with AsyncRunwire(api_url=server.address, access_token=API_KEY) as client:
        made = await client.schedules.create(
            task="drip", cron="0 9 * * 1", deduplication_key="k", external_id=nasty
        )
    async with signed_in(browser, server.address) as page:
        await page.get_by_role("link", name="Schedules").click()
        declared = page.get_by_role("row", name="yearly")
        await expect(declared).to_contain_text("0 0 1 1 *")
        await expect(declared).to_contain_text("Asia/Tokyo")
        row = page.locator(f"tr[data-schedule={made.id}]")
        await expect(row).to_have_attribute("data-state", "active")
        await expect(row.get_by_text(nasty)).to_be_visible()
        await expect(row.get_by_text(re.compile(r"^in \d"))).to_be_visible()
        async with AsyncRunwire(api_url=server.address, access_token=API_KEY) as client:
            await client.schedules.deactivate(made.id)
        await expect(row).to_have_attribute("data-state", "inactive")
        await expect(row).to_contain_text("never")


async def test_more_schedules_than_a_page_are_shown_when_asked_for(
    browser: Browser, server: Server
) -> None:
    async with AsyncRunwire(api_url=server.address, access_token=API_KEY) as client:
        created = [
            await client.schedules.create(
                task="drip", cron="0 9 1 1 *", deduplication_key=f"many-{number}"
            )
            for number in range(110)
        ]
    last = created[-1]
    async with signed_in(browser, server.address) as page:
        await page.get_by_role("link", name="Schedules").click()
        await expect(page.locator("tr[data-schedule]")).to_have_count(100)
        row = page.locator(f"tr[data-schedule={last.id}]")
        await expect(row).to_have_count(0)
        await page.get_by_role("button", name="Show more").click()
        await expect(row).to_be_visible()
        await expect(page.get_by_role("button", name="Show more")).to_have_count(0)
        # What it shows stays up to date.
        async with AsyncRunwire(api_url=server.address, access_token=API_KEY) as client:
            await client.schedules.deactivate(last.id)
        await expect(row).to_have_attribute("data-state", "inactive")


async def test_the_list_is_live_and_filters(browser: Browser, server: Server) -> None:
    async with signed_in(browser, server.address) as page:
        waiting = await trigger(page, server.address, "patient", "", "first")
        await page.goto(urljoin(server.address, "#/"))
        row = page.locator(f'a[data-run="{waiting}"]')
        await expect(row).to_contain_text("Executing")

        # Somebody else's run appears by itself, above, and changes by itself.
        other = await page.context.new_page()
        quick = await trigger(other, server.address, "drip", '{"words": 3, "pause": 0}', "second")
        await expect(page.locator("a.run-row").first).to_have_attribute("data-run", quick)
        newer = page.locator(f'a[data-run="{quick}"]')
        await expect(newer).to_contain_text("Completed")

        await page.get_by_label("Tag").fill("first")
        await page.get_by_label("Tag").press("Enter")
        await expect(newer).to_have_count(0)
        await expect(row).to_be_visible()
        await page.get_by_role("button", name="Clear").click()
        await page.get_by_label("Status").select_option("COMPLETED")
        await expect(row).to_have_count(0)
        await expect(newer).to_be_visible()

        await page.goto(urljoin(server.address, "#/?status=LOST"))
        chosen = page.get_by_label("Status").locator("option:checked")
        await expect(chosen).to_have_text("LOST (no such status)")
        await page.goto(urljoin(server.address, "#/?status=COMPLETED,FAILED"))
        await expect(chosen).to_have_text("COMPLETED,FAILED")
        await expect(newer).to_be_visible()
        await page.get_by_label("Status").select_option("COMPLETED")
        await expect(newer).to_be_visible()

        # Keys lead there too.
        await page.locator("h1, .run-head").first.click()
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await page.wait_for_url(re.compile(quick))


async def test_the_log_of_a_run_is_shown_by_level_and_attempt(
    browser: Browser, server: Server
) -> None:
    async with signed_in(browser, server.address) as page:
        await trigger(page, server.address, "chatty", "3")
        await expect(page.get_by_role("article")).to_have_attribute(
            "data-status", "COMPLETED", timeout=30_000
        )
        log = page.get_by_label("Log", exact=True)
        await expect(log.locator("li")).to_have_count(9)
        error = log.locator('li[data-level="error"]')
        await expect(error).to_contain_text("attempt 1 giving up")
        await expect(error).to_contain_text('{"why":"the first attempt"}')
        await expect(log).to_contain_text("shop from a library")
        await expect(log).to_contain_text("<img src=x onerror")
        # The log is no stream of the run.
        await expect(page.locator("pre[data-stream]")).to_have_count(0)
        await log.get_by_label("Least urgent level").select_option("warn")
        await expect(log.locator("li")).to_have_count(3)


async def test_a_runs_children_are_shown_live_on_its_page(browser: Browser, server: Server) -> None:
    async with signed_in(browser, server.address) as page:
        parent = await trigger(page, server.address, "family", "null")
        children = page.get_by_role("region", name="Runs it triggered").locator("a[data-run]")
        waited = children.filter(has_text="patient")
        await expect(children.filter(has_text="drip")).to_have_attribute("data-status", "COMPLETED")
        await expect(waited).to_have_attribute("data-status", "EXECUTING")
        child = await waited.get_attribute("data-run")
        assert child is not None
        async with AsyncRunwire(api_url=server.address, access_token=API_KEY) as client:
            await client.runs.cancel(child)
        await expect(waited).to_have_attribute("data-status", "CANCELED")
        await expect(page.get_by_role("article")).to_have_attribute("data-status", "COMPLETED")
        await waited.click()
        await expect(page.get_by_role("link", name=parent)).to_be_visible()
        await expect(page.get_by_role("region", name="Runs it triggered")).to_have_count(0)


async def test_no_page_is_wider_than_a_small_phone(browser: Browser, server: Server) -> None:
    small = ViewportSize(width=320, height=640)
    widest = "document.documentElement.scrollWidth"
    async with watched(browser) as page:
        await page.set_viewport_size(small)
        await page.goto(server.address)
        await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        assert await page.evaluate(widest) == 320
    async with signed_in(browser, server.address) as page:
        await page.set_viewport_size(small)
        await trigger(page, server.address, "drip", '{"words": 1, "pause": 0}', "t" * 128)
        await expect(page.get_by_role("article")).to_have_attribute("data-status", "COMPLETED")
        assert await page.evaluate(widest) == 320
        for link in ("Runs", "Schedules", "New run"):
            await page.get_by_role("navigation").get_by_role("link", name=link).click()
            await expect(page.get_by_role("link", name=link).first).to_have_attribute(
                "aria-current", "page"
            )
            assert await page.evaluate(widest) == 320, link


async def test_a_run_is_canceled_and_replayed(browser: Browser, server: Server) -> None:
    async with signed_in(browser, server.address) as page:
        first = await trigger(page, server.address, "patient", "")
        run = page.get_by_role("article")
        await expect(run).to_have_attribute("data-status", "EXECUTING")
        await page.get_by_role("button", name="Cancel").click()
        await expect(run).to_have_attribute("data-status", "CANCELED")
        await expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
        await page.get_by_role("button", name="Replay").click()
        await page.wait_for_url(lambda url: "#/runs/run_" in url and first not in url)
        await expect(run).to_have_attribute("data-status", "EXECUTING")


async def test_whatever_a_run_says_is_shown_as_text(browser: Browser, server: Server) -> None:
    tag = "<b onmouseover=alert(1)>tag</b>"
    async with signed_in(browser, server.address) as page:
        payload = '{"nasty": "<img src=x onerror=window.pwned=1>"}'
        await trigger(page, server.address, "nasty", payload, tag)
        run = page.get_by_role("article")
        await expect(run).to_have_attribute("data-status", "FAILED")
        assert await stream_text(page, "nasty") == NASTY
        assert await stream_text(page, "chat") == NASTY
        assert "onerror" in await stream_text(page, "objects")
        await expect(page.locator(".error-message")).to_contain_text("<script>")
        await expect(page.locator(".stack")).to_contain_text("Traceback")
        await expect(page.locator("pre[data-json=metadata]")).to_contain_text("<img src=x")
        await expect(page.locator("pre[data-json=payload]")).to_contain_text("<img src=x")
        await expect(run.get_by_role("link", name=tag)).to_be_visible()
        await page.goto(urljoin(server.address, "#/"))
        await expect(page.locator("a.run-row").first).to_contain_text(tag)
        assert await page.locator("main img, main script, main b[onmouseover]").count() == 0


async def test_a_payload_that_is_wrong_is_refused_in_words(
    browser: Browser, server: Server
) -> None:
    async with signed_in(browser, server.address) as page:
        await page.goto(urljoin(server.address, "#/trigger/drip"))
        editor = page.get_by_label("Payload, as JSON")
        await expect(editor).to_have_value(re.compile(r'"words": 0'))
        await editor.fill('{"words": ')
        await expect(page.get_by_role("alert")).to_contain_text("Not valid JSON")
        await expect(page.get_by_role("button", name="Run", exact=True)).to_be_disabled()
        await trigger(page, server.address, "drip", '{"words": "many"}')
        run = page.get_by_role("article")
        await expect(run).to_have_attribute("data-status", "FAILED")
        await expect(page.locator(".error-message")).to_contain_text("words")


async def test_a_link_signs_in_once_and_a_stranger_is_told_how_to_get_one(
    browser: Browser, server: Server
) -> None:
    async with watched(browser) as page:
        await page.goto(server.address)
        await expect(page.get_by_text("runwire dev")).to_be_visible()
        await expect(page.get_by_role("alert")).to_have_count(0)
        # In the page that is there already, as when a link is pasted into its address bar.
        await page.goto(server.sign_in_link)
        await expect(page.get_by_role("status")).to_have_text("Live")
        assert "sign-in" not in page.url
        await page.reload()
        await expect(page.get_by_role("status")).to_have_text("Live")
        await page.get_by_role("button", name="Sign out").click()
        await page.reload()
        await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    async with watched(browser) as page:
        await page.goto(server.sign_in_link)
        await expect(page.get_by_role("alert")).to_contain_text("used up")
        await page.get_by_label("Or paste a sign-in link or an API key").fill("nonsense")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("neither a sign-in link nor")
        assert await page.get_by_role("link", name="New run").count() == 0


async def test_a_server_that_dies_and_comes_back_leaves_no_hole_in_the_text(
    browser: Browser, database_url: str, tmp_path: Path
) -> None:
    words, environment = 300, environment_of(database_url)
    port = ("--port", str(_port_for_later()))
    command = ("runwire", "dev", "--no-reload", *port, "--data", str(tmp_path))
    async with running("runwire", "worker", _TASKS, environment=environment) as worker:
        async with running(*command, environment=environment) as process:
            server = await started(process)
            async with signed_in(browser, server.address) as page:
                await trigger(page, server.address, "drip", f'{{"words": {words}}}')
                await grown(page, 100)
                process.kill()
                await expect(page.get_by_role("status")).to_have_text("Reconnecting")
                seen = len(await stream_text(page, "answer"))
                async with running(*command, environment=environment):
                    assert await grown(page, seen) < len(text_of(words))
                    run = page.get_by_role("article")
                    await expect(run).to_have_attribute("data-status", "COMPLETED")
                    await expect(page.locator(".stream-facts")).to_have_text(f"{words} chunks")
                    assert await stream_text(page, "answer") == text_of(words)
        assert worker.exit_code is None


def _port_for_later() -> int:
    """Return a free port that no outgoing connection is given while nobody listens on it."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
