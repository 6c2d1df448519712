"""The official Trigger.dev SDK, as npm has it, driven from Python.

    async with official_sdk(server.url, server.key) as sdk:
        schedule = await sdk("schedules.create", {"task": "digest", ...})
        every = await sdk.all("schedules.list")

What it returns went through its own parser: a body that it does not understand is an `SdkError`.
`make setup` installs it; Node runs it.
"""

import json
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

FOLDER: Final = Path(__file__).with_name("official_sdk")
_LONGEST_ANSWER: Final = 4 * 2**20
_PATIENCE: Final = 60.0


def is_installed() -> bool:
    return (FOLDER / "node_modules").is_dir()


class SdkError(Exception):
    """What a call of the SDK threw."""

    def __init__(self, name: str, message: str, status: int | None, cause: str | None) -> None:
        super().__init__(f"{name}: {message}" + (f" ({cause})" if cause else ""))
        self.name, self.message, self.status = name, message, status


class OfficialSdk:
    """The SDK in a Node process of its own; one call at a time."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._stdin = process.stdin
        self._stdout = BufferedByteReceiveStream(process.stdout)

    async def __call__(self, call: str, *args: Any, token: str | None = None) -> Any:
        """Call a function by group and name, with a public token instead of the key if given."""
        return await self._ask(call, args, token=token)

    async def all(self, call: str, *args: Any) -> list[Any]:
        """Return every item of what a call returns, page by page."""
        items: list[Any] = await self._ask(call, args, all=True)
        return items

    async def _ask(self, call: str, args: tuple[Any, ...], **how: Any) -> Any:
        request = {"call": call, "args": args, **{k: v for k, v in how.items() if v is not None}}
        text = json.dumps(request, default=_special)
        with anyio.fail_after(_PATIENCE):
            await self._stdin.send(text.encode() + b"\n")
            answer = json.loads(await self._stdout.receive_until(b"\n", _LONGEST_ANSWER))
        if error := answer.get("error"):
            raise SdkError(error["name"], error["message"], error.get("status"), error.get("cause"))
        return answer["value"]


def _special(value: object) -> object:
    assert isinstance(value, datetime)
    return {"$date": value.isoformat()}


def items(*values: Any) -> dict[str, Any]:
    """Return what the SDK takes as an async iterable of these values."""
    return {"$items": list(values)}


@asynccontextmanager
async def official_sdk(url: str, key: str) -> AsyncGenerator[OfficialSdk]:
    """Run the SDK against a server for the length of a block."""
    node = shutil.which("node")
    assert node is not None, "there is no node: make setup"
    assert is_installed(), "the official SDK is not installed: make setup"
    environment = {**os.environ, "TRIGGER_API_URL": url, "TRIGGER_SECRET_KEY": key}
    async with await anyio.open_process(
        [node, str(FOLDER / "driver.mjs")], env=environment, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield OfficialSdk(process)
        finally:
            process.kill()
