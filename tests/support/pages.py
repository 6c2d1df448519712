"""A server with a dashboard, and pages of a browser that must have no trouble with it."""

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

from playwright.async_api import Browser, Page, expect

from tests.support.processes import Process

API_KEY: Final = "tr_dev_sk_0123456789abcdefABCDEFgh"
# A violation of the page's policy is told here and nowhere else, whatever the console says.
_WATCH_POLICY: Final = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) =>
        window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`));
"""
# How a browser tells of a network that fails: nothing that a page says or could prevent.
_OF_THE_NETWORK: Final = ("WebSocket connection to ", "Failed to load resource: net::")


@dataclass(frozen=True)
class Server:
    """A `runwire dev` that is up."""

    address: str
    sign_in_link: str

    @property
    def host_and_port(self) -> tuple[str, int]:
        parts = urlsplit(self.address)
        assert parts.hostname is not None and parts.port is not None
        return parts.hostname, parts.port


def environment_of(database_url: str) -> dict[str, str]:
    """Return the environment of a server, and of workers, on this database."""
    return {
        "RUNWIRE_DATABASE_URL": database_url,
        "RUNWIRE_SECRET": "a secret that outlives the process " * 2,
        "RUNWIRE_API_KEY": API_KEY,
    }


async def started(process: Process) -> Server:
    """Wait until `runwire dev` is up."""
    line = await process.until_line("#sign-in=", 60)
    link = next(word for word in line.split() if word.startswith("http"))
    return Server(link.partition("#")[0], link)


@asynccontextmanager
async def watched(browser: Browser) -> AsyncGenerator[Page]:
    """Open a page of a browser that knows nothing; afterwards it must have had no trouble."""
    context = await browser.new_context()
    await context.add_init_script(_WATCH_POLICY)
    page = await context.new_page()
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    yield page
    assert await page.evaluate("window.violations") == []
    assert await page.evaluate("window.pwned") is None
    assert trouble == []
    await context.close()


@asynccontextmanager
async def signed_in(browser: Browser, address: str) -> AsyncGenerator[Page]:
    """Sign in with the API key; the link is good once and has a test of its own."""
    async with watched(browser) as page:
        await page.goto(address)
        await page.get_by_label("paste a sign-in link").fill(API_KEY)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("status")).to_have_text("Live")
        yield page


async def trigger(page: Page, address: str, task: str, payload: str, tags: str = "") -> str:
    """Fill in the form, run it, and return the id of the run whose page opens."""
    await page.goto(urljoin(address, f"#/trigger/{task}"))
    await page.get_by_label("Payload, as JSON").fill(payload)
    await page.get_by_label("Tags").fill(tags)
    await page.get_by_role("button", name="Run", exact=True).click()
    await page.wait_for_url(re.compile(r"#/runs/run_"))
    return page.url.rpartition("/")[2]


async def stream_text(page: Page, key: str) -> str:
    return await page.locator(f'pre[data-stream="{key}"]').text_content() or ""


async def grown(page: Page, beyond: int) -> int:
    """Wait until the answer is longer than that, and return how long it is."""
    script = (
        "beyond => document.querySelector('pre[data-stream=answer]')?.textContent.length > beyond"
    )
    await page.wait_for_function(script, arg=beyond)
    return len(await stream_text(page, "answer"))


def complaints(page: Page) -> list[str]:
    """Return a list that what the page has to complain of is added to, but for its network."""
    found: list[str] = []
    page.on(
        "console",
        lambda message: (
            found.append(message.text)
            if message.type == "error" and not message.text.startswith(_OF_THE_NETWORK)
            else None
        ),
    )
    return found
