"""`runwire dev` as a person meets it: a real process with real children."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import anyio
import httpx
import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from runwire.wire import PROTOCOL, CloseCode
from runwire_realtime.server import bind, port_of
from tests.support.processes import Process, running, until

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

TASKS = """
from runwire.tasks import task

@task(id="greet")
async def greet(payload: dict) -> str:
    return "{greeting} " + payload["name"]
"""


SLOW = """
import anyio
from runwire import task

@task(id="slow")
async def slow(payload: object = None) -> None:
    await anyio.sleep(3600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_tasks.py").write_text(TASKS.format(greeting="hello"))
    return tmp_path


def _command(folder: Path, *more: str, port: int = 0) -> list[str]:
    data = str(folder / "data")
    cli = [sys.executable, "-m", "runwire_realtime.cli", "dev", "--port", str(port)]
    return [*cli, "--data", data, str(folder / "my_tasks.py"), *more]


class _Dev:
    """What `runwire dev` printed."""

    def __init__(self, process: Process, output: str) -> None:
        self.process = process
        self.url = re.findall(r"http://127\.0\.0\.1:\d+", output)[0]
        self.code = re.findall(r"#sign-in=(\S+)", output)[0]
        self.key = re.findall(r"tr_dev_sk_\w+", output)[0]

    @property
    def children(self) -> dict[int, str]:
        """The live processes below it, with their command lines."""
        return _below(self.process.pid)

    @property
    def workers(self) -> list[int]:
        return [pid for pid, command in self.children.items() if "cli worker" in command]

    async def greet(self, name: str) -> object:
        """Trigger a run and return its output."""
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60) as http:
            body = {"payload": f'{{"name": "{name}"}}'}
            made = await http.post("/api/v1/tasks/greet/trigger", json=body)
            path = f"/api/v3/runs/{made.json()['id']}"
            with anyio.fail_after(60):
                while True:
                    run = (await http.get(path)).json()
                    if run["isCompleted"]:
                        return run.get("output")
                    await anyio.sleep(0.05)  # nothing but the API tells this test of the run


async def _up(process: Process) -> _Dev:
    await process.until_line("try", 60)
    return _Dev(process, process.output())


def _below(parent: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found |= {int(entry.name): command} | _below(int(entry.name))
    return found


def _is_running(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"


async def test_everything_starts_works_reloads_and_stops_within_five_seconds(folder: Path) -> None:
    async with running(*_command(folder)) as process:
        dev = await _up(process)
        assert await dev.greet("world") == "hello world"
        async with httpx.AsyncClient(base_url=dev.url, timeout=60) as browser:
            answer = await browser.post("/api/v1/auth/sign-in", json={"code": dev.code})
            assert answer.status_code == 200
        # A broken file is shown, and the next change starts the worker again.
        (folder / "my_tasks.py").write_text("def broken(:")
        line = await process.until_line("SyntaxError")
        assert "my_tasks.py" in line
        (folder / "my_tasks.py").write_text(TASKS.format(greeting="good evening"))
        with anyio.fail_after(60):
            while await dev.greet("world") != "good evening world":
                await anyio.sleep(0.1)  # the reload has no other announcement
        kept, children = dev.key, dev.children
        assert len(children) >= 2
        process.interrupt()
        began = time.monotonic()
        assert await process.wait() == 0
        assert time.monotonic() - began < 15  # 5 where nothing else runs
        await until(lambda: not any(_is_running(child) for child in children))
        assert (folder / "data" / "api-key").stat().st_mode & 0o077 == 0
        assert (folder / "data" / "secret").stat().st_mode & 0o077 == 0
    began = time.monotonic()
    async with running(*_command(folder)) as process:
        dev = await _up(process)
        assert time.monotonic() - began < 30
        assert dev.key == kept


async def test_after_a_kill_nothing_of_it_is_in_the_way_of_the_next_start(folder: Path) -> None:
    async with running(*_command(folder)) as process:
        dev = await _up(process)
        assert len(dev.workers) == 1
        # A worker that dies is started again.
        os.kill(dev.workers[0], signal.SIGKILL)
        await process.until_line("starting it again")
        assert await dev.greet("again") == "hello again"
        workers = dev.workers
        process.kill()
        await process.wait()
        await until(lambda: not any(_is_running(worker) for worker in workers))
        async with running(*_command(folder)) as second:
            dev = await _up(second)
            assert await dev.greet("you") == "hello you"
            second.interrupt()
            assert await second.wait() == 0


@pytest.mark.parametrize("case", ["port", "module", "broken", "empty", "secret"])
async def test_what_cannot_start_is_one_clear_line(
    folder: Path, case: str, database_url: str
) -> None:
    listener = bind("127.0.0.1", 0)
    try:
        port = port_of(listener) if case == "port" else 0
        expected = {
            "port": "--port",
            "module": "there is no module 'nowhere'",
            "broken": "my_tasks.py:1",
            "empty": "no task is defined",
            "secret": "RUNWIRE_SECRET must have at least 32 bytes",
        }[case]
        # An external database, so that no cluster has to be made for each case.
        environment = {"RUNWIRE_DATABASE_URL": database_url}
        if case == "secret":
            environment["RUNWIRE_SECRET"] = "short"
        if case == "broken":
            (folder / "my_tasks.py").write_text("import nothing_by_that_name")
        if case == "empty":
            (folder / "my_tasks.py").write_text("")
        more = ["nowhere"] if case == "module" else []
        async with running(*_command(folder, *more, port=port), environment=environment) as process:
            assert await process.wait() == 1
            lines = [line for line in process.output().splitlines() if line.strip()]
            assert len(lines) == 1 and expected in lines[0], process.output()
    finally:
        listener.close()


async def test_the_end_does_not_wait_for_subscribers_or_long_runs(folder: Path) -> None:
    (folder / "my_tasks.py").write_text(SLOW)
    async with running(*_command(folder)) as process:
        dev = await _up(process)
        headers = {"authorization": f"Bearer {dev.key}"}
        async with httpx.AsyncClient(base_url=dev.url, headers=headers, timeout=60) as http:
            made = await http.post("/api/v1/tasks/slow/trigger", json={})
            address = f"ws{dev.url.removeprefix('http')}/realtime/v1/socket"
            async with connect(
                address, subprotocols=[Subprotocol(PROTOCOL)], additional_headers=headers
            ) as socket:
                subscribe = {"type": "subscribe", "sub": "s", "to": {"run": made.json()["id"]}}
                await socket.send(orjson.dumps(subscribe).decode())
                with anyio.fail_after(60):
                    while b"EXECUTING" not in str(await socket.recv()).encode():
                        pass
                process.interrupt()
                began = time.monotonic()
                assert await process.wait() == 0
                assert time.monotonic() - began < 15  # 5 where nothing else runs
                with anyio.fail_after(60), pytest.raises(ConnectionClosed):
                    while True:
                        await socket.recv()
                assert socket.close_code == CloseCode.GOING_AWAY


async def test_a_data_folder_in_use_is_one_clear_line(folder: Path) -> None:
    async with running(*_command(folder)) as process:
        await _up(process)
        async with running(*_command(folder)) as second:
            assert await second.wait() == 1
            assert "in use by another runwire process" in second.output()
            assert len(second.output().strip().splitlines()) == 1
        process.interrupt()
        assert await process.wait() == 0


GREETING = """
from pydantic import BaseModel, Field
from runwire import streams, task

class Greeting(BaseModel):
    name: str = Field(min_length=3)
    often: int = 2

@task(id="greet often")
async def greet_often(payload: Greeting) -> str:
    await streams.append("text", f"hello {payload.name}")
    return "hello " * payload.often
"""


async def test_the_lines_to_try_work_as_they_are_printed(folder: Path, database_url: str) -> None:
    (folder / "my_tasks.py").write_text(GREETING)
    environment = {"RUNWIRE_DATABASE_URL": database_url, "PYTHONUNBUFFERED": ""}
    async with running(*_command(folder), environment=environment) as process:
        await process.until_line("curl", 60)  # into a file: nothing is held back
        lines = process.output().partition("another terminal\n")[2].splitlines()
        # As in a new terminal: nothing of this process's own variables.
        shell = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        pasted = "\n".join(["set -e", *lines[:3]])
        result = await anyio.run_process(["bash", "-c", pasted], env=shell, stderr=None)
        printed = result.stdout.decode()
        assert printed.startswith("run_") and "hello name" in printed
        assert '{"id":"run_' in printed
        process.interrupt()
        assert await process.wait() == 0


async def test_the_api_key_can_be_fixed(folder: Path) -> None:
    environment = {**os.environ, "RUNWIRE_API_KEY": "tr_dev_sk_" + "A" * 24}
    async with running(*_command(folder), environment=environment) as process:
        dev = await _up(process)
        assert dev.key == "tr_dev_sk_" + "A" * 24
        assert await dev.greet("me") == "hello me"
        process.terminate()
        assert await process.wait() == 0
