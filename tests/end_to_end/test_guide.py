"""The guide's examples as they stand in the docs, on a real server and worker."""

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from runwire import AsyncRunwire, Run
from tests.support.parts import Served, serving, worker_on
from tests.support.postgres import TestServer
from tests.support.processes import CHECKOUT, running
from tests.support.scripted_http import ScriptedHttp, completion, scripted_http

pytestmark = pytest.mark.anyio

PAGE: Final = CHECKOUT / "docs" / "howto" / "coming-from-trigger-dev.md"
WORDS: Final = ["Tides ", "follow ", "the ", "moon."]
# Files that are programs; every other one defines tasks or hooks.
PROGRAMS: Final = {"make_schedule.py", "backend.py", "trigger_with_metadata.py", "watch.py"}
_BLOCK = re.compile(r"^```python\n# (\w+\.py)\n.*?^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Guide:
    """The files of the page, and a server and a worker on them."""

    folder: Path
    served: Served
    client: AsyncRunwire
    openai: ScriptedHttp

    async def done(self, task: str, payload: object, **options: Any) -> Run:
        """Run a task by its id, to its end."""
        handle = await self.client.tasks.trigger(task, payload, **options)
        return await self.client.runs.poll(handle, interval=0.05, timeout=60)

    async def program(self, name: str) -> list[str]:
        """Run a program of the page; return the lines it printed."""
        environment = {**self.served.environment, "NO_PROXY": "127.0.0.1"}
        async with running("python", str(self.folder / name), environment=environment) as process:
            assert await process.wait(60) == 0, process.output()
            return process.output().splitlines()


def files() -> dict[str, str]:
    """Return the files of the page by name."""
    found: dict[str, str] = {}
    for block in _BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        assert block[1] not in found, f"two files are named {block[1]}"
        found[block[1]] = block[0].removeprefix("```python\n").removesuffix("```")
    return found


@pytest.fixture(scope="module")
async def guide(
    postgres: TestServer, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Guide]:
    folder = tmp_path_factory.mktemp("guide")
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
    modules = [str(folder / name) for name in files() if name not in PROGRAMS]
    with scripted_http() as openai:
        openai.answer(200, completion(*WORDS), content_type="text/event-stream")
        async with serving(postgres) as served:
            environment = {
                **served.environment,
                "OPENAI_API_KEY": "sk-of-the-tests",
                "OPENAI_BASE_URL": f"{openai.url}/v1",
                "NO_PROXY": "127.0.0.1",
            }
            url, key = environment["RUNWIRE_API_URL"], environment["RUNWIRE_API_KEY"]
            async with (
                worker_on(served.dsn, *modules, environment=environment),
                AsyncRunwire(api_url=url, access_token=key) as client,
            ):
                yield Guide(folder, served, client, openai)


def test_every_python_block_of_the_page_is_a_file() -> None:
    blocks = PAGE.read_text(encoding="utf-8").count("```python")
    assert len(files()) == blocks
    assert set(files()) > PROGRAMS


async def test_tasks_with_their_options_run(guide: Guide) -> None:
    assert (await guide.done("hello-world", {"message": "hello"})).is_success
    for task in ("task-with-retries", "one-at-a-time", "long-task"):
        assert (await guide.done(task, 7)).output == 7


async def test_hooks_are_called(guide: Guide) -> None:
    run = await guide.done("task-with-hooks", "x")
    assert run.output == "some value"
    assert run.metadata == {"hooks": ["on_start", "on_success: some value", "cleanup"]}
    log = [line async for line in guide.client.runs.logs(run.id)]
    assert [line.message for line in log] == ["task started", "task succeeded"]


async def test_an_error_is_handled_as_the_hook_says(guide: Guide) -> None:
    run = await guide.done("task-that-fails", "hopeless")
    assert (run.status, run.attempt) == ("FAILED", 1)
    assert run.metadata == {"hooks": ["on_failure: hopeless"]}


async def test_schedules_are_declared_and_made(guide: Guide) -> None:
    (line,) = await guide.program("make_schedule.py")
    schedules = {schedule.id: schedule async for schedule in guide.client.schedules.list()}
    declared = {s.task: (s.cron, s.timezone) for s in schedules.values() if s.type == "DECLARATIVE"}
    assert declared == {
        "first-scheduled-task": ("0 */2 * * *", "UTC"),
        "second-scheduled-task": ("0 5 * * *", "Asia/Tokyo"),
    }
    assert schedules[line.split()[0]].cron == "0 0 * * *"
    again = await guide.program("make_schedule.py")
    assert again[0].split()[0] == line.split()[0], "the same key is the same schedule"


async def test_a_scheduled_task_gets_its_payload(guide: Guide) -> None:
    payload = {
        "timestamp": "2026-11-24T12:00:00Z",
        "timezone": "Europe/Berlin",
        "scheduleId": "sched_1",
        "upcoming": ["2026-11-24T14:00:00Z"],
    }
    assert (await guide.done("first-scheduled-task", payload)).is_success


async def test_payloads_are_checked(guide: Guide) -> None:
    for task in ("my-schema-task", "my-annotated-task"):
        run = await guide.done(task, {"name": "Alice", "age": 30})
        assert run.output == "Alice is 30"
        wrong = await guide.done(task, {"name": "Alice"})
        assert wrong.status == "FAILED" and wrong.error is not None
        assert wrong.error.code == "PAYLOAD_INVALID"


async def test_a_backend_triggers(guide: Guide) -> None:
    single, batch, output, mixed = await guide.program("backend.py")
    assert single.startswith("run_") and single.endswith("True")
    assert batch.startswith("batch_") and batch.endswith(" 2")
    assert output == "sent to eric@example.com"
    assert mixed.startswith("batch_") and mixed.endswith(" 2")


async def test_a_task_triggers_others(guide: Guide) -> None:
    run = await guide.done("triggering-task", "x")
    assert run.is_success, run.error
    assert run.output["batch"] == 1 and run.output["second"] == "child-task-2"


async def test_a_task_waits_for_others(guide: Guide) -> None:
    run = await guide.done("parent-task", "x")
    assert run.is_success, run.error
    assert run.output == [
        "SOME-DATA",
        "MORE",
        *("ITEM4", "ITEM5", "ITEM6"),
        *("first: Hello World", "second: 43"),
        *("Hello World", 43),
    ]


async def test_metadata_is_written_and_read(guide: Guide) -> None:
    (run_id,) = await guide.program("trigger_with_metadata.py")
    run = await guide.client.runs.poll(run_id, interval=0.05, timeout=60)
    assert run.output == "Eric Eric"
    assert run.metadata == {
        "user": {"name": "Eric", "id": "user_1234"},
        "date": "2026-11-24T12:00:00Z",
        "progress": 0.5,
        "logs": [],
        "status": "processing",
    }


async def test_a_stream_of_tokens_is_watched(guide: Guide) -> None:
    lines = await guide.program("watch.py")
    assert "run COMPLETED" in lines
    chunks = [line.removeprefix("chunk ") for line in lines if line.startswith("chunk ")]
    assert "".join(chunks) == "".join(WORDS)
    assert lines[-1] == f"output {''.join(WORDS)}"
    assert json.loads(guide.openai.asked[0].body)["stream"] is True


async def test_keys_hold_for_their_scope_and_time(guide: Guide) -> None:
    run = await guide.done("task-with-keys", "x")
    assert run.is_success, run.error
    first, again, shared, later = run.output
    assert first == again
    assert len({first, shared, later}) == 3


async def test_lines_are_logged(guide: Guide) -> None:
    run = await guide.done("logging-example", {"order": "7"})
    with anyio.fail_after(30):
        log = [line async for line in guide.client.runs.logs(run.id)]
    own = [line for line in log if "message" in line.message.lower() or "warned" in line.message]
    assert [line.level for line in own] == ["log", "info", "warn", "error"]
    assert all(line.attributes == {"order": "7"} for line in own)
