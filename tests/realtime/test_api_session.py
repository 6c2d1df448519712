"""Signing in to the dashboard: one code, one browser, the own pages only."""

from collections.abc import AsyncGenerator

import httpx
import pytest

from tests.support.server import TestRealtime
from tests.support.tasks import announce

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server(shared: TestRealtime) -> TestRealtime:
    return await shared.tenant("echo")


@pytest.fixture
async def browser(server: TestRealtime) -> AsyncGenerator[httpx.AsyncClient]:
    headers = {"origin": server.url, "sec-fetch-site": "same-origin"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
        yield client


async def test_a_code_is_exchanged_once_for_a_token_and_a_cookie_no_script_can_read(
    server: TestRealtime, browser: httpx.AsyncClient
) -> None:
    await announce(server.services, "echo")
    code = server.services.sign_in.issue()
    answer = await browser.post("/api/v1/auth/sign-in", json={"code": code})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/api/v1/auth" in cookie
    again = await browser.post("/api/v1/auth/sign-in", json={"code": code})
    assert again.status_code == 401 and "used up or expired" in again.json()["error"]
    renewed = await browser.post("/api/v1/auth/session", json={})
    assert renewed.status_code == 200 and renewed.json()["token"] != answer.json()["token"]
    async with server.client(renewed.json()["token"]) as page:
        assert (await page.get("/api/v1/runs")).status_code == 200
        assert (await page.post("/api/v1/tasks/echo/trigger", json={})).status_code == 200
        # Administration needs a key.
        minting = await page.post("/api/v1/auth/public-tokens", json={"scopes": ["read:runs"]})
        assert minting.status_code == 403
    await browser.post("/api/v1/auth/sign-out", json={})
    assert (await browser.post("/api/v1/auth/session", json={})).status_code == 401


async def test_the_cookie_opens_nothing_else(
    server: TestRealtime, browser: httpx.AsyncClient
) -> None:
    code = server.services.sign_in.issue()
    await browser.post("/api/v1/auth/sign-in", json={"code": code})
    cookie = browser.cookies["runwire_session"]
    answer = await browser.get("/api/v1/runs", headers={"cookie": f"runwire_session={cookie}"})
    assert answer.status_code == 401
    async with server.client(cookie) as bearer:
        assert (await bearer.get("/api/v1/runs")).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"content-type": "text/plain"},
    ],
)
async def test_another_page_can_neither_sign_in_nor_renew(
    server: TestRealtime, browser: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    code = server.services.sign_in.issue()
    await browser.post("/api/v1/auth/sign-in", json={"code": code})
    for path in ("session", "sign-in", "sign-out"):
        answer = await browser.post(f"/api/v1/auth/{path}", content="{}", headers=headers)
        assert answer.status_code == 403, path


async def test_an_api_key_signs_in_and_a_token_does_not(
    server: TestRealtime, browser: httpx.AsyncClient
) -> None:
    answer = await browser.post("/api/v1/auth/sign-in", json={"apiKey": server.key})
    assert answer.status_code == 200
    token = await server.token("read:runs")
    answer = await browser.post("/api/v1/auth/sign-in", json={"apiKey": token})
    assert answer.status_code in {400, 401}
    for wrong, why in (
        ({"apiKey": "tr_dev_sk_" + "0" * 24}, "not known here"),
        ({"code": "x"}, "neither a sign-in link nor an API key"),
        ({}, "send a sign-in code or an API key"),
    ):
        answer = await browser.post("/api/v1/auth/sign-in", json=wrong)
        assert answer.status_code == 401 and why in answer.json()["error"]
