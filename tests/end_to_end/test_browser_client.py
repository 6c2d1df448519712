"""The TypeScript client in a real browser, on networks and machines that do what they like."""

import logging
import os
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import run as run_program
from typing import Any, Final, TypedDict, cast

import anyio
import httpx
import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.end_to_end.dashboard_tasks import text_of
from tests.support.faultproxy import fault_proxy
from tests.support.pages import (
    API_KEY,
    Server,
    complaints,
    grown,
    signed_in,
    stream_text,
    trigger,
    watched,
)
from tests.support.plain_proxy import plain_proxy

pytestmark = [pytest.mark.anyio, pytest.mark.browser]

logger = logging.getLogger(__name__)
_TYPESCRIPT: Final = Path(__file__).parents[2] / "clients/typescript"
# How long a page sleeps here: longer than its token lives.
_SLEEP_SECONDS: Final = float(os.environ.get("RUNWIRE_SLEEP_SECONDS", "4"))
_TOKEN_SECONDS: Final = 3
_STALL_SECONDS: Final = float(os.environ.get("RUNWIRE_STALL_SECONDS", "0"))
# Follow a run and keep what is told; tokens are used until they end, as a page does.
_FOLLOW: Final = """
    async ([url, run, seconds]) => {
        const { Runwire } = await import("/runwire-client/index.js");
        const seen = { text: "", gaps: 0, tokens: 0, errors: [], states: [], isDone: false };
        window.seen = seen;
        window.addEventListener("unhandledrejection", (event) => seen.errors.push(event.reason));
        let held = { token: "", until: 0 };
        const token = async () => {
            if (Date.now() < held.until) return held.token;
            seen.tokens += 1;
            held = { token: await window.mint(run), until: Date.now() + seconds * 1000 };
            return held.token;
        };
        const runwire = new Runwire({ url, token });
        runwire.onConnection((state) => seen.states.push(state));
        const updates = runwire.subscribeToRun(run, { streams: { answer: { as: "text" } } });
        updates.on("text", ({ text }) => void (seen.text = text));
        updates.on("gap", () => void (seen.gaps += 1));
        updates.on("error", (error) => void seen.errors.push(String(error)));
        updates.on("done", () => void (seen.isDone = true));
    }
"""


class _Process(TypedDict):
    type: str
    id: int


class _Processes(TypedDict):
    processInfo: list[_Process]


@pytest.fixture(scope="module")
def client_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client as a browser loads it."""
    compiler = _TYPESCRIPT / "node_modules/.bin/tsc"
    if not compiler.exists():
        pytest.skip("the npm packages are not installed: make setup")
    folder = tmp_path_factory.mktemp("client")
    project = _TYPESCRIPT / "client/tsconfig.build.json"
    command = (compiler, "-p", project, "--outDir", folder, "--declaration", "false")
    run_program([str(word) for word in command], check=True, timeout=60)
    return folder


@asynccontextmanager
async def page_with_client(browser: Browser, server: Server, modules: Path) -> AsyncGenerator[Page]:
    """Open a page of the server's origin that can load the client, and mint tokens for a run."""

    async def module(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        await route.fulfill(path=modules / name, content_type="text/javascript")

    async def mint(run_id: str) -> str:
        scopes = {"scopes": [f"read:runs:{run_id}"], "expirationTime": f"{_TOKEN_SECONDS}s"}
        answer = await api(server, "/api/v1/auth/public-tokens", scopes)
        return str(answer["token"])

    async with watched(browser) as page:
        await page.route("**/runwire-client/*.js", module)
        await page.expose_function("mint", mint)  # pyright: ignore[reportUnknownMemberType]
        await page.goto(server.address)
        # The page itself is done with asking who is there.
        await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        yield page


async def api(server: Server, path: str, body: object) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(base_url=server.address, headers=headers, timeout=60) as http:
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


async def drip(server: Server, words: int) -> str:
    body = {"payload": f'{{"words": {words}}}'}
    return str((await api(server, "/api/v1/tasks/drip/trigger", body))["id"])


@asynccontextmanager
async def asleep(browser: Browser) -> AsyncGenerator[None]:
    """Stop every page of the browser, as a laptop's lid does."""
    session = await browser.new_browser_cdp_session()
    ask = cast(Callable[[str], Awaitable[_Processes]], session.send)  # pyright: ignore[reportUnknownMemberType]
    known = await ask("SystemInfo.getProcessInfo")
    pages = [each["id"] for each in known["processInfo"] if each["type"] == "renderer"]
    assert pages
    for pid in pages:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pages:
            os.kill(pid, signal.SIGCONT)
        await session.detach()


async def test_where_no_websocket_passes_a_run_is_read_by_events_also_across_a_cut(
    browser: Browser, server: Server
) -> None:
    words = 250
    async with plain_proxy(server.host_and_port) as proxy:
        address = f"http://127.0.0.1:{proxy.port}/"
        async with signed_in(browser, address) as page:
            trouble = complaints(page)
            await trigger(page, address, "drip", f'{{"words": {words}}}')
            await grown(page, 100)
            assert proxy.event_streams > 0
            proxy.cut()
            await expect(page.get_by_role("status")).to_have_text("Reconnecting")
            seen = len(await stream_text(page, "answer"))
            assert await grown(page, seen) < len(text_of(words))
            run = page.get_by_role("article")
            await expect(run).to_have_attribute("data-status", "COMPLETED")
            assert await stream_text(page, "answer") == text_of(words)
            await expect(page.locator(".stream-facts")).to_have_text(f"{words} chunks")
            # Two tries at first, and one after the cut.
            assert proxy.refused >= 3
            assert trouble == []


@pytest.mark.faults
@pytest.mark.timeout(120 + 2 * _SLEEP_SECONDS)
async def test_a_page_that_slept_past_the_end_of_its_token_goes_on_without_a_reload(
    browser: Browser, server: Server, client_modules: Path
) -> None:
    words = 400
    run_id = await drip(server, words)
    async with page_with_client(browser, server, client_modules) as page:
        trouble = complaints(page)
        await page.evaluate(_FOLLOW, [server.address, run_id, _TOKEN_SECONDS])
        await page.wait_for_function("() => window.seen.text.length > 100")
        before = await page.evaluate("window.seen.tokens")
        async with asleep(browser):
            await anyio.sleep(_SLEEP_SECONDS)  # the sleep is what is tested
        woken = time.monotonic()
        await page.wait_for_function(
            "(before) => window.seen.states.at(-1) === 'live' && window.seen.tokens > before",
            arg=before,
        )
        logger.info("live %.2f s after %.0f s of sleep", time.monotonic() - woken, _SLEEP_SECONDS)
        await page.wait_for_function("() => window.seen.isDone", timeout=60_000)
        seen = await page.evaluate("window.seen")
        assert seen["text"] == text_of(words)
        assert seen["errors"] == []
        assert seen["gaps"] == 0
        assert "reconnecting" in seen["states"]
        assert trouble == []


@pytest.mark.faults
@pytest.mark.skipif(not _STALL_SECONDS, reason="takes over a minute each: make faults")
@pytest.mark.timeout(120 + 2 * _STALL_SECONDS)
@pytest.mark.parametrize("carrier", ["socket", "events"])
async def test_a_page_whose_network_stalls_notices_and_goes_on(
    browser: Browser, server: Server, carrier: str
) -> None:
    words = 600
    async with (
        fault_proxy(server.host_and_port) as stalling,
        plain_proxy(("127.0.0.1", stalling.port)) as plain,
    ):
        port = stalling.port if carrier == "socket" else plain.port
        address = f"http://127.0.0.1:{port}/"
        async with signed_in(browser, address) as page:
            trouble = complaints(page)
            await trigger(page, address, "drip", f'{{"words": {words}}}')
            await grown(page, 100)
            stalling.stall()
            stalled = time.monotonic()
            status = page.get_by_role("status")
            await expect(status).to_have_text("Reconnecting", timeout=45_000)
            logger.info("%s: noticed after %.1f s", carrier, time.monotonic() - stalled)
            await anyio.sleep(max(0.0, _STALL_SECONDS - (time.monotonic() - stalled)))
            stalling.flow()
            flowing = time.monotonic()
            # The run may have ended meanwhile, and then nothing needs the connection any more.
            run = page.get_by_role("article")
            await expect(run).to_have_attribute("data-status", "COMPLETED", timeout=60_000)
            logger.info("%s: whole after another %.1f s", carrier, time.monotonic() - flowing)
            assert await stream_text(page, "answer") == text_of(words)
            assert trouble == []
