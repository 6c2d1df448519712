"""The dashboard: files built by `make setup`, served with a policy that runs no foreign script."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

_BUILD: Final = Path(str(files("runwire_realtime") / "dashboard"))
_POLICY: Final = (
    "default-src 'self'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
_MISSING: Final = """<!doctype html><html lang="en"><meta charset="utf-8">
<title>Runwire</title><h1>Runwire is running</h1>
<p>The dashboard is not built in this checkout. <code>make setup</code> builds it; reload this page
afterwards.</p>
<p>The HTTP API is described at <a href="openapi.json">openapi.json</a>.</p></html>
"""


def dashboard(request: Request) -> Response:
    """Serve a file of the build; any other path is a page of the single-page application."""
    build = _BUILD.resolve()
    page = build / "index.html"
    if not page.is_file():
        return HTMLResponse(_MISSING, headers=_HEADERS)
    wanted = str(request.path_params.get("path", ""))
    if "\x00" in wanted:
        raise HTTPException(404, "there is no such page")
    file = (build / wanted).resolve()
    if wanted and file.is_relative_to(build) and file.is_file():
        return FileResponse(file, headers={**_HEADERS, "cache-control": _caching(wanted)})
    # A missing asset must not come back as a page: an old tab would try to run it.
    if wanted.startswith("assets/"):
        raise HTTPException(404, "there is nothing here")
    return FileResponse(page, headers={**_HEADERS, "cache-control": "no-cache"})


def _caching(path: str) -> str:
    # The build names its assets by their content.
    return "public, max-age=31536000, immutable" if path.startswith("assets/") else "no-cache"
