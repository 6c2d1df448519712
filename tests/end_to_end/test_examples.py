"""The examples as they stand in the docs, on real input, through a real server and worker."""

import csv
import hashlib
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import anyio
import pytest

from runwire import AsyncRunwire, Event, Run
from tests.support.parts import Served, serving, worker_on
from tests.support.postgres import TestServer
from tests.support.processes import CHECKOUT
from tests.support.scripted_http import ScriptedHttp, completion, scripted_http

pytestmark = pytest.mark.anyio

ORDERS = CHECKOUT / "docs" / "examples" / "data" / "orders.csv"
MODULES = [f"docs.examples.{name}" for name in ("ask", "import_csv", "digest_folder")]


@dataclass(frozen=True)
class Example:
    """How one run of an example went."""

    run: Run
    events: list[Event]

    def chunks(self, key: str) -> list[Any]:
        """Return the chunks of a stream, after a look at their numbers."""
        found = [event for event in self.events if event.type == key]
        assert [event.seq for event in found] == list(range(len(found)))
        return [event.chunk for event in found]


@pytest.fixture(scope="module")
async def served(postgres: TestServer, anyio_backend: str) -> AsyncGenerator[Served]:
    """One server for all examples: they do not get in each other's way."""
    async with serving(postgres) as served:
        yield served


@pytest.fixture(scope="module")
async def worker(served: Served, anyio_backend: str) -> AsyncGenerator[None]:
    """A worker without a key of OpenAI's."""
    async with worker_on(served.dsn, *MODULES, environment=served.environment):
        yield


@pytest.fixture
async def client(served: Served, anyio_backend: str) -> AsyncGenerator[AsyncRunwire]:
    url, key = served.environment["RUNWIRE_API_URL"], served.environment["RUNWIRE_API_KEY"]
    async with AsyncRunwire(api_url=url, access_token=key) as opened:
        yield opened


async def tried(client: AsyncRunwire, task: str, payload: object) -> Example:
    """Trigger an example and follow it to its end."""
    handle = await client.tasks.trigger(task, payload)
    with anyio.fail_after(60):
        events = [event async for event in client.runs.subscribe_to_run(handle).with_streams()]
    return Example(await client.runs.retrieve(handle), events)


# ask ---------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint() -> Generator[ScriptedHttp]:
    with scripted_http() as script:
        yield script


async def test_ask_streams_from_any_compatible_endpoint(
    served: Served, client: AsyncRunwire, endpoint: ScriptedHttp
) -> None:
    words = ["Tides ", "follow ", "the ", "moon", ". ☾"]
    endpoint.answer(200, completion(*words), content_type="text/event-stream")
    environment = {
        **served.environment,
        "OPENAI_API_KEY": "sk-of-the-tests",
        "OPENAI_BASE_URL": f"{endpoint.url}/v1",
        "OPENAI_MODEL": "scripted",
        "NO_PROXY": "127.0.0.1",
    }
    # Before the worker that the other tests share, which has no key.
    async with worker_on(served.dsn, *MODULES, environment=environment):
        example = await tried(client, "ask", {"question": "Why are there tides?"})

    assert example.run.is_success, example.run.error
    assert example.chunks("answer") == words
    assert example.run.output == {"text": "".join(words), "answered_by": "scripted"}
    (asked,) = endpoint.asked
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == "Bearer sk-of-the-tests"
    assert asked.json["messages"] == [{"role": "user", "content": "Why are there tides?"}]
    assert asked.json["stream"] is True and asked.json["model"] == "scripted"


@pytest.mark.usefixtures("worker")
async def test_ask_answers_from_the_docs_without_a_key_and_streams_its_answer(
    client: AsyncRunwire,
) -> None:
    example = await tried(client, "ask", {"question": "Which close codes mean reconnect?"})

    assert example.run.is_success, example.run.error
    output = example.run.output
    words = example.chunks("answer")
    assert len(words) > 20, "it comes in pieces"
    assert "".join(words) == output["text"]
    assert output["text"].startswith("From the documentation of this project")
    assert "docs/" in output["text"] and "4399" in output["text"]
    assert output["answered_by"] == "this project's documentation"
    assert example.run.metadata == {"status": "answered", "answeredBy": output["answered_by"]}
    said = [event.run.metadata.get("status") for event in example.events if event.type == "run"]
    assert "answering" in said and said[-1] == "answered"


# import-csv --------------------------------------------------------------------------------------


def expected_import() -> tuple[int, list[int], dict[str, float]]:
    """Count the good rows, the lines of the bad ones and the totals, in the test's own way."""
    good, bad = 0, list[int]()
    totals = {"quantity": 0.0, "price": 0.0}
    with ORDERS.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="too many", restval=None)
        for row in reader:
            try:
                whole = "too many" not in row and None not in row.values()
                numbers = {name: float(row[name]) for name in totals} if whole else None
            except ValueError:
                numbers = None
            if numbers is None:
                bad.append(reader.line_num)
                continue
            good += 1
            totals = {name: totals[name] + numbers[name] for name in totals}
    return good, bad, totals


@pytest.mark.usefixtures("worker")
async def test_import_csv_counts_rows_reports_bad_ones_and_returns_the_totals(
    client: AsyncRunwire,
) -> None:
    good, bad, totals = expected_import()
    assert good > 1000 and bad, "the file is worth the test"

    example = await tried(client, "import-csv", {"path": "docs/examples/data/orders.csv"})

    assert example.run.is_success, example.run.error
    output = example.run.output
    assert (output["rows"], output["bad_rows"]) == (good, len(bad))
    assert output["totals"].keys() == totals.keys()
    assert all(isclose(output["totals"][name], totals[name], abs_tol=0.005) for name in totals)
    metadata = example.run.metadata
    assert metadata["progress"] == {"rows": good, "bad": len(bad), "percent": 100}
    assert [reported["line"] for reported in metadata["badRows"]] == bad
    lines = example.chunks("bad-rows")
    assert [int(line.split(":")[0].removeprefix("line ")) for line in lines] == bad


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"path": "docs/no-such-file.csv"}, "there is no file docs/no-such-file.csv"),
        ({"numeric": ["weight"]}, "the file has no column weight"),
    ],
)
async def test_import_csv_says_what_is_wrong_with_its_input(
    client: AsyncRunwire, payload: dict[str, Any], message: str
) -> None:
    run = (await tried(client, "import-csv", payload)).run
    assert (run.status, run.attempt) == ("FAILED", 1)
    assert run.error is not None
    assert (run.error.message, run.error.code) == (message, "TASK_ABORTED")


# digest-folder -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of some depth, with an empty file and one that is no text."""
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    for number in range(9):
        (tmp_path / "deep" / f"{number}.txt").write_text("line\n" * number * 100)
    (tmp_path / "deep" / "deeper" / "bytes.txt").write_bytes(bytes(range(256)) * 500)
    (tmp_path / "left-out.md").write_text("of another kind")
    return tmp_path


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of each text file by its path."""
    return {str(file): file.read_bytes() for file in folder.glob("**/*.txt")}


@pytest.mark.usefixtures("worker")
async def test_digest_folder_digests_each_file_in_a_run_of_its_own(
    client: AsyncRunwire, folder: Path
) -> None:
    example = await tried(client, "digest-folder", {"path": str(folder), "pattern": "**/*.txt"})

    contents = contents_of(folder)
    size = sum(len(content) for content in contents.values())
    listing = "".join(
        f"{hashlib.sha256(contents[path]).hexdigest()} {path}\n" for path in sorted(contents)
    )
    assert example.run.is_success, example.run.error
    assert example.run.output == {
        "files": len(contents),
        "failed": 0,
        "bytes": size,
        "lines": sum(content.count(b"\n") for content in contents.values()),
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }
    assert example.run.metadata == {
        "files": len(contents),
        "filesDone": len(contents),
        "bytesDone": size,
    }
    children = [run async for run in client.runs.list(task="digest-file", page_size=100)]
    assert len(children) == len(contents)
    assert {child.parent_id for child in children} == {example.run.id}
    assert {child.status for child in children} == {"COMPLETED"}
