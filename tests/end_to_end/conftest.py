"""A server and a browser for the tests that look at pages."""

import os
import shutil
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import Browser, async_playwright, expect

from tests.support.pages import Server, environment_of, started
from tests.support.postgres import TestServer
from tests.support.processes import running

_BUILD: Final = Path(__file__).parents[2] / "realtime/runwire_realtime/dashboard/index.html"
_TASKS: Final = "tests/end_to_end/dashboard_tasks.py"
# A page beside other tests takes its time; the default is five seconds.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def shared_database_url(postgres: TestServer) -> Generator[str]:
    dsn = postgres.create_database()
    yield dsn
    postgres.drop_database(dsn)


@pytest.fixture(scope="module")
async def server(
    shared_database_url: str, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncGenerator[Server]:
    """The whole of Runwire, one for all tests of a module: they look at runs of their own."""
    folder = tmp_path_factory.mktemp("dashboard")
    command = ("runwire", "dev", "--no-reload", "--port", "0", "--data", str(folder), _TASKS)
    async with running(*command, environment=environment_of(shared_database_url)) as process:
        yield await started(process)


@pytest.fixture(scope="module")
async def browser(anyio_backend: str) -> AsyncGenerator[Browser]:
    """Chromium: $CHROMIUM, or the one on the PATH."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("there is no Chromium here")
    if not _BUILD.is_file():
        pytest.skip("the dashboard is not built: make setup")
    async with async_playwright() as playwright:
        # The sandbox needs rights that a container's root has not got.
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        await browser.close()
