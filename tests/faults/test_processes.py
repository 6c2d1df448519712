"""Process control does to real processes what it says, and leaves none behind."""

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from tests.support.processes import ProcessEnded, free_port, running, until

pytestmark = pytest.mark.anyio

COUNT = """
import itertools, sys, time
for number in itertools.count():
    print("tick", number, flush=True)
    time.sleep(0.01)
"""
OBEY = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(60)
"""
SERVER = """
import http.server, sys, time
time.sleep(0.2)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_output_and_exit_code_are_kept() -> None:
    async with running("python", "-c", "print('out'); import sys; sys.exit(3)") as process:
        assert await process.wait() == 3
        assert process.output() == "out\n"


async def test_a_terminated_process_may_clean_up() -> None:
    async with running("python", "-c", OBEY) as process:
        await process.until_line("ready")
        process.terminate()
        assert await process.wait() == 7


async def test_a_killed_process_may_not() -> None:
    async with running("python", "-c", OBEY) as process:
        await process.until_line("ready")
        process.kill()
        assert await process.wait() == -signal.SIGKILL


async def test_a_stalled_process_does_nothing_until_it_is_resumed() -> None:
    async with running("python", "-c", COUNT) as process:
        await process.until_line("tick 3")
        process.stall()
        stat = Path(f"/proc/{process.pid}/stat")
        await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        so_far = process.output()
        await anyio.sleep(0.1)  # that nothing happens can only be seen by waiting
        assert process.output() == so_far

        process.resume()
        await until(lambda: process.output() != so_far)


async def test_waiting_for_a_line_of_a_process_that_ended_fails_with_its_output() -> None:
    async with running("python", "-c", "raise SystemExit('broken for a reason')") as process:
        with pytest.raises(ProcessEnded, match="broken for a reason"):
            await process.until_line("ready")


async def test_waiting_has_a_bound() -> None:
    async with running("python", "-c", COUNT) as process:
        with pytest.raises(TimeoutError):
            await process.until_line("never", seconds=0.1)


async def test_a_server_is_ready_when_it_answers() -> None:
    port = free_port()
    async with running("python", "-c", SERVER, str(port)) as process:
        await process.until_ready(f"http://127.0.0.1:{port}/readyz")


async def test_what_a_process_started_dies_with_it() -> None:
    async with running("python", "-c", PARENT) as process:
        line = await process.until_line("child")
        child = int(line.split()[1])
        assert is_alive(child)

    await until(lambda: not is_alive(child))


async def test_what_a_killed_process_started_dies_with_the_block() -> None:
    async with running("python", "-c", PARENT) as process:
        child = int((await process.until_line("child")).split()[1])
        process.kill()
        await process.wait()
        assert is_alive(child)

    await until(lambda: not is_alive(child))


async def test_a_failing_test_leaves_no_process() -> None:
    pid = 0
    with pytest.raises(ZeroDivisionError):
        async with running("python", "-c", COUNT) as process:
            pid = process.pid
            raise ZeroDivisionError
    assert not is_alive(pid)


async def test_the_environment_is_ours_with_additions() -> None:
    program = "import os; print(os.environ['RUNWIRE_SECRET'], os.environ['PATH'])"
    async with running("python", "-c", program, environment={"RUNWIRE_SECRET": "s"}) as process:
        await process.wait()
        assert process.output() == f"s {os.environ['PATH']}\n"


async def test_programs_come_from_the_interpreter_of_the_tests() -> None:
    async with running("python", "-c", "import sys; print(sys.executable)") as process:
        await process.wait()
        assert process.output().strip() == sys.executable
