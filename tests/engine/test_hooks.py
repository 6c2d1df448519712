"""Hooks around real runs: their order, what they are given, and what their errors come to."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from runwire import locals, metadata, streams, tasks, wait
from runwire._context import Context
from runwire._hooks import OFFERED, of_all
from runwire._stream_keys import LOG_KEY
from runwire.errors import AbortTaskRunError
from runwire.tasks import AnyTask, Caught, Completion, Next, RunPromise, WaitInfo
from runwire_engine.verdicts import Interruption
from runwire_engine.worker import Worker
from tests.support.working import Bench, defined, error_of, opened_bench, until

pytestmark = pytest.mark.anyio

Hook = Callable[..., Any]
FAST = {"max_attempts": 2, "min_timeout": 0.01, "randomize": False}


@pytest.fixture(autouse=True)
def no_hooks_of_all() -> Iterator[None]:
    yield
    of_all.hooks.clear()


@pytest.fixture
async def bench(database_url: str, anyio_backend: str) -> AsyncGenerator[Bench]:
    async with opened_bench(database_url) as opened:
        yield opened


# Every task, and every hook, may be `def` or `async def`.
ways = pytest.mark.parametrize(
    ("on_loop", "is_async"),
    [(True, True), (True, False), (False, True), (False, False)],
    ids=["async, async hooks", "async, def hooks", "def, async hooks", "def, def hooks"],
)


def tasked(function: Callable[..., Any], on_loop: bool, **options: Any) -> AnyTask:
    """Make a task of a `def` function, or of an `async def` one that calls it."""
    if not on_loop:
        return defined(function, **options)

    async def looping(payload: Any, ctx: Context, init: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return function(payload, ctx, init)

    looping.__qualname__ = function.__qualname__
    return defined(looping, **options)


def noting(told: list[Any], what: Callable[..., object], is_async: bool) -> Hook:
    """Return a hook that notes something, `def` or `async def`."""

    def hook(**given: Any) -> Any:
        noted = what(**given)
        told.append(noted)
        return {"from": noted}

    async def async_hook(**given: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return hook(**given)

    return async_hook if is_async else hook


def saying(text: str) -> Callable[..., str]:
    def what(**_: Any) -> str:
        return text

    return what


def wrapping(told: list[Any], name: str, is_async: bool) -> Hook:
    async def async_middleware(next: Next) -> None:
        told.append(f"{name} in")
        await next()
        told.append(f"{name} out")

    def middleware(next: Callable[[], None]) -> None:
        told.append(f"{name} in")
        next()
        told.append(f"{name} out")

    return async_middleware if is_async else middleware


AROUND = [kind for kind in OFFERED if kind not in ("middleware", "catch_error")]


@ways
async def test_hooks_are_called_in_the_order_of_the_reference(
    bench: Bench, on_loop: bool, is_async: bool
) -> None:
    told: list[Any] = []

    def ordered(payload: Any, ctx: Context, init: Any) -> str:
        told.append("run")
        return "out"

    for kind in AROUND:
        of_all.hooks.add(kind, noting(told, saying(f"all {kind}"), is_async))
    tasks.middleware(wrapping(told, "all 1", True))
    tasks.middleware(wrapping(told, "all 2", True))
    own: dict[str, Any] = {kind: noting(told, saying(f"own {kind}"), is_async) for kind in AROUND}
    made = tasked(
        ordered, on_loop, middleware=wrapping(told, "own", is_async or on_loop), retry=FAST, **own
    )
    async with bench.worker(made):
        row = await bench.finished(made, 1)
    assert (row.status, row.output) == ("COMPLETED", '"out"'), row.error
    assert told == [
        "all 1 in",
        "all 2 in",
        "own in",
        *("all init", "own init"),
        *("all on_start", "own on_start"),
        *("all on_start_attempt", "own on_start_attempt"),
        "run",
        *("all on_success", "own on_success"),
        *("all on_complete", "own on_complete"),
        *("all cleanup", "own cleanup"),
        "own out",
        "all 2 out",
        "all 1 out",
    ]


@ways
async def test_a_failing_task_is_caught_once_per_attempt_and_fails_once(
    bench: Bench, on_loop: bool, is_async: bool
) -> None:
    told: list[Any] = []

    def failing(payload: Any, ctx: Context, init: Any) -> None:
        raise ValueError(f"attempt {ctx.attempt.number}")

    def note(name: str) -> Hook:
        def what(ctx: Context, error: Any = None, **_: Any) -> str:
            return f"{name} {ctx.attempt.number} {error or ''}".strip()

        return noting(told, what, is_async)

    def catching(name: str) -> Hook:
        def hook(error: Exception) -> None:
            told.append(f"{name} catch_error {error}")

        async def async_hook(error: Exception) -> None:
            hook(error)

        return async_hook if is_async else hook

    tasks.catch_error(catching("all"))
    kinds = ("on_start", "on_start_attempt", "on_failure", "on_success", "cleanup")
    own: dict[str, Any] = {kind: note(kind) for kind in kinds}
    made = tasked(failing, on_loop, retry=FAST, handle_error=catching("own"), **own)
    async with bench.worker(made):
        row = await bench.finished(made, 1)
    assert (row.status, row.attempt, error_of(row)["message"]) == ("FAILED", 2, "attempt 2")
    assert told == [
        *("on_start 1", "on_start_attempt 1"),
        *("own catch_error attempt 1", "all catch_error attempt 1"),
        "cleanup 1",
        "on_start_attempt 2",
        *("own catch_error attempt 2", "all catch_error attempt 2"),
        *("on_failure 2 attempt 2", "cleanup 2"),
    ]


@ways
async def test_hooks_are_given_what_they_name(bench: Bench, on_loop: bool, is_async: bool) -> None:
    told: dict[str, Any] = {}

    def naming(payload: Any, ctx: Context, init: Any) -> Any:
        told["run"] = (payload, init)
        return [payload, 2]

    def keeping(kind: str) -> Hook:
        def hook(**given: Any) -> Any:
            told[kind] = given
            return {"own": 1, "both": "own"} if kind == "init" else None

        async def async_hook(**given: Any) -> Any:
            return hook(**given)

        return async_hook if is_async else hook

    @tasks.init
    def of_every_task() -> dict[str, Any]:
        return {"all": 1, "both": "all"}

    kinds = ("init", "on_start", "on_success", "on_complete", "cleanup")
    own: dict[str, Any] = {kind: keeping(kind) for kind in kinds}
    made = tasked(naming, on_loop, **own)
    async with bench.worker(made):
        row = await bench.finished(made, 7)
    init = {"all": 1, "both": "own", "own": 1}
    assert told.pop("run") == (7, init)
    for kind, given in told.items():
        assert set(given) == set(OFFERED[kind]), kind
        assert (given["payload"], given["task"], given["ctx"].run.id) == (7, made.id, row.id)
        assert not given["signal"].is_set()
        assert kind == "init" or given["init"] == init, kind
    assert told["on_success"]["output"] == [7, 2]
    assert told["on_complete"]["result"] == Completion(True, [7, 2], None)


async def test_on_complete_gets_the_error_of_a_failure(bench: Bench) -> None:
    results: list[Completion[Any]] = []

    async def failing() -> None:
        raise LookupError("nowhere")

    def note(result: Completion[Any]) -> None:
        results.append(result)

    made = defined(failing, on_complete=note)
    async with bench.worker(made):
        await bench.finished(made)
    (result,) = results
    assert not result.ok and result.output is None and str(result.error) == "nowhere"


async def test_what_the_tasks_own_init_returns_may_be_anything(bench: Bench) -> None:
    async def using(init: datetime) -> str:
        return init.isoformat()

    at = datetime(2026, 11, 24, tzinfo=UTC)
    made = defined(using, init=lambda: at)
    without = defined(naming_nothing)
    async with bench.worker(made, without):
        assert (await bench.finished(made)).output == f'"{at.isoformat()}"'
        assert (await bench.finished(without)).output == "true"


async def naming_nothing(init: object) -> bool:
    return init is None


async def test_an_init_of_every_task_that_returns_no_dict_fails_the_attempt(bench: Bench) -> None:
    async def using() -> None: ...

    tasks.init(lambda: 5)
    made = defined(using)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert row.status == "FAILED" and "it is a dict" in error_of(row)["message"]


SPOILING = ["init", "on_start", "on_start_attempt"]


@ways
@pytest.mark.parametrize("kind", SPOILING)
async def test_an_error_before_the_function_fails_the_attempt_and_may_be_retried(
    bench: Bench, on_loop: bool, is_async: bool, kind: str
) -> None:
    told: list[str] = []

    def reached(payload: Any, ctx: Context, init: Any) -> int:
        told.append("run")
        return ctx.attempt.number

    def what(ctx: Context, **_: Any) -> str:
        if ctx.attempt.number == 1:
            raise ValueError(f"not in {kind}")
        return kind

    hooks = {kind: noting([], what, is_async), "cleanup": lambda: told.append("cleanup")}
    made = tasked(reached, on_loop, retry=FAST, **hooks)
    async with bench.worker(made):
        row = await bench.finished(made, 1)
    assert (row.status, row.output) == ("COMPLETED", "2")
    assert told == ["cleanup", "run", "cleanup"]


@ways
@pytest.mark.parametrize("kind", ["on_success", "on_complete"])
async def test_an_error_after_a_success_is_told_and_changes_nothing(
    bench: Bench, on_loop: bool, is_async: bool, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def succeeding(payload: Any, ctx: Context, init: Any) -> str:
        return "fine"

    def what(**_: Any) -> object:
        raise RuntimeError("the mail server is away")

    of_all.hooks.add(kind, noting([], what, is_async))
    hooks: dict[str, Any] = {kind: lambda: told.append(kind)}
    made = tasked(succeeding, on_loop, **hooks)
    with caplog.at_level(logging.WARNING, "runwire.worker"):
        async with bench.worker(made):
            row = await bench.finished(made, 1)
    assert (row.status, row.output, row.attempt) == ("COMPLETED", '"fine"', 1)
    # The hooks beside it are called all the same.
    assert told == [kind]
    (record,) = [record for record in caplog.records if row.id in record.getMessage()]
    assert f"the {kind} hook" in record.getMessage() and record.exc_info is not None
    (line,) = await bench.chunks(row.id, LOG_KEY)
    assert line["level"] == "warn" and line["message"].endswith("the mail server is away")
    assert "RuntimeError" in line["attributes"]["error"]["stackTrace"]


async def test_an_error_of_on_failure_leaves_the_error_of_the_run(bench: Bench) -> None:
    async def failing() -> None:
        raise ValueError("the first")

    def worse() -> None:
        raise RuntimeError("the second")

    made = defined(failing, on_failure=worse)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, error_of(row)["message"]) == ("FAILED", "the first")


@pytest.mark.parametrize("where", ["cleanup", "middleware"])
async def test_an_error_on_the_way_out_fails_an_attempt_that_had_succeeded(
    bench: Bench, where: str
) -> None:
    told: list[str] = []

    async def succeeding(ctx: Context) -> int:
        return ctx.attempt.number

    async def spoiling(ctx: Context) -> None:
        if ctx.attempt.number == 1:
            raise ValueError("could not close it")

    async def middleware(next: Next, ctx: Context) -> None:
        await next()
        await spoiling(ctx)

    hook: dict[str, Any] = {where: spoiling if where == "cleanup" else middleware}
    made = defined(succeeding, retry=FAST, **hook)
    made.on_success(lambda: told.append("on_success"))
    made.on_failure(lambda: told.append("on_failure"))

    @made.catch_error
    def note(error: Exception) -> None:  # pyright: ignore[reportUnusedFunction]
        told.append(f"catch_error {error}")

    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, row.output) == ("COMPLETED", "2")
    assert told == ["on_success", "catch_error could not close it", "on_success"]


async def test_a_middleware_that_fails_on_the_way_in_keeps_the_function_from_being_called(
    bench: Bench,
) -> None:
    told: list[str] = []

    async def unreached() -> None:
        told.append("run")

    async def failing(next: Next) -> None:
        raise ConnectionError("no database")

    def note(error: Exception) -> None:
        told.append(str(error))

    made = defined(unreached, middleware=failing, on_failure=note)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert (row.status, error_of(row)["name"]) == ("FAILED", "ConnectionError")
    assert told == ["no database"]


@pytest.mark.parametrize("on_loop", [True, False], ids=["on the loop", "in a thread"])
async def test_a_middleware_calls_next_exactly_once(bench: Bench, on_loop: bool) -> None:
    def counted(payload: Any, ctx: Context, init: Any) -> None: ...

    def counted_again(payload: Any, ctx: Context, init: Any) -> None: ...

    async def never(next: Next) -> None: ...

    async def twice(next: Next) -> None:
        await next()
        await next()

    async with bench.worker(
        skipped := tasked(counted, on_loop, middleware=never),
        doubled := tasked(counted_again, on_loop, middleware=twice),
    ):
        row = await bench.finished(skipped, 1)
        assert (row.status, error_of(row)["name"]) == ("FAILED", "TaskError")
        assert "did not call next()" in error_of(row)["message"]
        row = await bench.finished(doubled, 1)
        assert (row.status, "twice" in error_of(row)["message"]) == ("FAILED", True)


async def test_a_middleware_may_hand_next_to_a_task_of_its_own(bench: Bench) -> None:
    async def slow() -> str:
        await anyio.sleep(0.01)
        return "done"

    async def handing(next: Next) -> None:
        handed.append(asyncio.ensure_future(next()))
        await anyio.lowlevel.checkpoint()

    handed: list[asyncio.Future[None]] = []
    made = defined(slow, middleware=handing)
    async with bench.worker(made):
        assert (await bench.finished(made)).output == '"done"'


# locals ------------------------------------------------------------------------------------------

CONNECTION = locals.create[str]("connection")


@ways
async def test_locals_reach_every_hook_and_the_function_and_no_other_run(
    bench: Bench, on_loop: bool, is_async: bool
) -> None:
    told: list[object] = []

    def reading(payload: Any, ctx: Context, init: Any) -> str:
        return locals.get_or_throw(CONNECTION)

    @tasks.middleware
    async def connected(next: Next, ctx: Context) -> None:
        assert locals.get(CONNECTION) is None
        locals.set(CONNECTION, ctx.run.id)
        await next()
        told.append(held())

    def held(**_: Any) -> str | None:
        return locals.get(CONNECTION)

    kinds = ("init", "on_success", "cleanup")
    own: dict[str, Any] = {kind: noting(told, held, is_async) for kind in kinds}
    made = tasked(reading, on_loop, **own)
    async with bench.worker(made):
        rows = [await bench.finished(made, 1) for _ in range(2)]
    for row in rows:
        assert row.output == f'"{row.id}"'
    assert told == [row.id for row in rows for _ in range(4)]


async def test_variables_of_a_middleware_are_the_functions(bench: Bench) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    async def setting(next: Next) -> None:
        variable.set("set")
        await next()

    async def reading() -> str:
        return variable.get()

    made = defined(reading, middleware=setting)
    async with bench.worker(made):
        assert (await bench.finished(made)).output == '"set"'


async def test_the_async_hooks_of_a_def_task_share_one_loop_and_its_own_loops_are_its_own(
    bench: Bench,
) -> None:
    loops: list[object] = []

    async def note() -> None:
        loops.append((asyncio.get_running_loop(), threading.get_ident()))

    async def around(next: Next) -> None:
        await note()
        await next()
        await note()

    async def inside() -> int:
        await anyio.lowlevel.checkpoint()
        return threading.get_ident()

    def blocking() -> bool:
        return asyncio.run(inside()) == anyio.run(inside) == threading.get_ident()

    made = defined(blocking, middleware=around, init=note, cleanup=note)
    async with bench.worker(made):
        assert (await bench.finished(made)).output == "true"
    assert len(loops) == 4 and len(set(loops)) == 1


async def test_a_def_hook_of_an_async_task_blocks_no_other_task(bench: Bench) -> None:
    free, blocked = threading.Event(), threading.Event()

    def blocking() -> None:
        blocked.set()
        assert free.wait(10)

    async def hooked() -> None: ...

    async def bystander() -> None: ...

    made, other = defined(hooked, init=blocking), defined(bystander)
    async with bench.worker(made, other):
        run_id = await bench.start(made)
        await until(blocked.is_set)
        assert (await bench.finished(other)).status == "COMPLETED"
        free.set()
        assert (await bench.until(run_id)).status == "COMPLETED"


# catch_error -------------------------------------------------------------------------------------


async def caught_with(
    bench: Bench, answer: Callable[..., object], **options: Any
) -> tuple[Any, list[float]]:
    """Run a task that fails once, with a catch_error, and return its row and when it began."""
    begun: list[float] = []

    async def failing(ctx: Context) -> int:
        begun.append(anyio.current_time())
        if ctx.attempt.number == 1:
            raise ValueError("once")
        return ctx.attempt.number

    failing.__qualname__ = f"failing-{len(tasks.registry())}"
    made = defined(failing, catch_error=answer, **options)
    async with bench.worker(made):
        return await bench.finished(made), begun


def soon(seconds: float = 0.2) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: {"retry_at": soon()},
        lambda: {"retry_at": soon().astimezone().replace(tzinfo=None)},
        lambda: {"retry_delay": 0.2},
        lambda: {"retry_delay": "200ms"},
        lambda: {"retry": {"max_attempts": 3, "min_timeout": 0.2, "randomize": False}},
        lambda: Caught(retry_delay=0.2),
        lambda: {"retry_delay": 0.2, "error": KeyError("another")},
    ],
    ids=["at", "at, local time", "in", "in, as text", "options", "an object", "with an error"],
)
async def test_catch_error_has_a_run_tried_again_whatever_its_options_say(
    bench: Bench, answer: Callable[[], object]
) -> None:
    row, begun = await caught_with(bench, answer, retry={"max_attempts": 1})
    assert (row.status, row.output) == ("COMPLETED", "2")
    assert begun[1] - begun[0] >= 0.19


async def test_a_time_that_has_passed_is_at_once(bench: Bench) -> None:
    answer = {"retry_at": datetime(2020, 1, 1, tzinfo=UTC)}
    row, _ = await caught_with(bench, lambda: answer, retry={"max_attempts": 1})
    assert (row.status, row.output) == ("COMPLETED", "2")


@pytest.mark.parametrize(
    ("answer", "name", "code"),
    [
        (lambda: {"skip_retrying": True}, "ValueError", "TASK_ERROR"),
        (lambda: {"skip_retrying": True, "error": KeyError("k")}, "KeyError", "TASK_ERROR"),
        (lambda: {"retry": {"max_attempts": 1}}, "ValueError", "TASK_ERROR"),
        (lambda: {"error": AbortTaskRunError("enough")}, "AbortTaskRunError", "TASK_ABORTED"),
    ],
    ids=["skip", "skip with an error", "options without an attempt left", "an abort"],
)
async def test_catch_error_ends_a_run_that_had_attempts_left(
    bench: Bench, answer: Callable[[], object], name: str, code: str
) -> None:
    row, _ = await caught_with(bench, answer, retry={"max_attempts": 5, "min_timeout": 0.01})
    told = error_of(row)
    assert (row.status, row.attempt, told["name"], told["code"]) == ("FAILED", 1, name, code)


async def test_an_abort_raised_in_catch_error_is_its_answer(bench: Bench) -> None:
    def aborting() -> None:
        raise AbortTaskRunError("enough")

    row, _ = await caught_with(bench, aborting, retry={"max_attempts": 5})
    assert (row.status, error_of(row)["code"]) == ("FAILED", "TASK_ABORTED")


def nothing() -> dict[str, Any]:
    return {}


def again(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "answer",
    [lambda: None, nothing, lambda: {"error": KeyError("nicer")}, lambda: Caught(), again],
    ids=["nothing", "an empty dict", "only an error", "an empty object", "the error raised again"],
)
async def test_without_a_decision_the_tasks_own_options_decide(
    bench: Bench, answer: Callable[..., object]
) -> None:
    row, _ = await caught_with(bench, answer, retry=FAST)
    assert (row.status, row.output) == ("COMPLETED", "2")


async def test_the_error_that_catch_error_answers_is_the_one_of_the_run(bench: Bench) -> None:
    told: list[str] = []

    def note(error: Exception) -> None:
        told.append(repr(error))

    row, _ = await caught_with(bench, lambda: {"error": KeyError("nicer")}, on_failure=note)
    assert (row.status, error_of(row)["name"], told) == (
        "FAILED",
        "KeyError",
        ["KeyError('nicer')"],
    )


async def test_the_tasks_catch_error_is_asked_first_and_the_first_answer_counts(
    bench: Bench,
) -> None:
    asked: list[str] = []

    def answering(name: str, answer: object) -> Hook:
        def hook() -> object:
            asked.append(name)
            return answer

        return hook

    tasks.catch_error(answering("all 1", {"retry_delay": 0}))
    tasks.catch_error(answering("all 2", {"skip_retrying": True}))
    row, _ = await caught_with(bench, answering("own", None), retry={"max_attempts": 1})
    assert row.status == "COMPLETED" and asked == ["own", "all 1"]


async def test_catch_error_is_told_what_would_happen_without_it(bench: Bench) -> None:
    told: dict[str, Any] = {}
    retry = {"max_attempts": 2, "min_timeout": 0.3, "randomize": False}

    def note(**given: Any) -> None:
        told.update(given)

    row, _ = await caught_with(bench, note, retry=retry)
    assert set(told) == set(OFFERED["catch_error"]) and row.status == "COMPLETED"
    assert (told["retry_delay"], told["retry"].max_attempts) == (0.3, 2)
    assert timedelta(0) < told["retry_at"] - row.started_at < timedelta(seconds=5)


def raising() -> None:
    raise RuntimeError("in the hook itself")


@pytest.mark.parametrize(
    "answer",
    [
        raising,
        lambda: "retry",
        lambda: {"retry_in": 5},
        lambda: {"retry_delay": -1},
        lambda: {"retry_delay": "soon"},
        lambda: {"retry_at": "tomorrow"},
        lambda: {"error": "text"},
        lambda: {"skip_retrying": True, "retry_delay": 1},
    ],
    ids=["raises", "text", "unknown", "negative", "no duration", "no time", "no error", "two"],
)
async def test_an_error_of_catch_error_itself_crashes_the_run_without_on_failure(
    bench: Bench, answer: Callable[[], object]
) -> None:
    told: list[str] = []
    row, _ = await caught_with(
        bench,
        answer,
        retry={"max_attempts": 5},
        on_failure=lambda: told.append("on_failure"),
        on_complete=lambda: told.append("on_complete"),
        cleanup=lambda: told.append("cleanup"),
    )
    assert (row.status, row.attempt, error_of(row)["code"]) == ("CRASHED", 1, "CATCH_ERROR")
    # What the task had raised is told as well.
    assert "ValueError: once" in error_of(row)["stackTrace"]
    assert told == ["cleanup"]


@pytest.mark.parametrize("kind", ["abort", "exit", "payload", "output"])
async def test_what_ends_a_run_for_sure_is_not_caught(bench: Bench, kind: str) -> None:
    told: list[str] = []

    async def ending(payload: str) -> object:
        match payload:
            case "abort":
                raise AbortTaskRunError("no")
            case "exit":
                raise SystemExit(3)
            case _:
                return object()

    def note(error: BaseException) -> None:
        told.append(f"on_failure {type(error).__name__}")

    made = defined(
        ending,
        retry={"max_attempts": 5},
        init=lambda: told.append("init"),
        catch_error=lambda: told.append("catch_error"),
        on_failure=note,
    )
    async with bench.worker(made):
        row = await bench.finished(made, 5 if kind == "payload" else kind)
    assert (row.status, row.attempt) == ("FAILED", 1)
    expected = {
        "abort": ["init", "on_failure AbortTaskRunError"],
        "exit": ["init", "on_failure SystemExit"],
        "output": ["init", "on_failure InvalidValueError"],
        # Nothing that would have to do without a payload.
        "payload": [],
    }
    assert told == expected[kind]


# Interruptions -----------------------------------------------------------------------------------


@ways
async def test_a_canceled_run_calls_on_cancel_and_cleanup_inside_the_middleware(
    bench: Bench, on_loop: bool, is_async: bool
) -> None:
    told: list[Any] = []
    begun = threading.Event()

    async def waiting(payload: Any, init: Any) -> None:
        begun.set()
        await anyio.sleep(60)

    def patient(payload: Any, init: Any, signal: tasks.Signal) -> None:
        begun.set()
        signal.wait(10)
        signal.raise_if_set()

    async def middleware(next: Next) -> None:
        told.append("in")
        await next()
        told.append("out")

    def what(payload: Any, init: Any, signal: tasks.Signal, **_: Any) -> Any:
        metadata.set("stopped", True)
        return ("on_cancel", payload, init, signal.is_set())

    kinds = ("on_success", "on_failure", "on_complete", "catch_error")
    never: dict[str, Any] = {kind: lambda _kind=kind: told.append(_kind) for kind in kinds}
    made = defined(
        waiting if on_loop else patient,
        init=lambda: 5,
        middleware=middleware,
        on_cancel=noting(told, what, is_async),
        cleanup=lambda: told.append("cleanup"),
        **never,
    )
    async with bench.worker(made):
        run_id = await bench.start(made, 1)
        await until(begun.is_set)
        await bench.engine.runs.cancel(bench.env, run_id)
        row = await bench.until(run_id)
    assert row.status == "CANCELED"
    assert told == ["in", ("on_cancel", 1, 5, True), "cleanup", "out"]
    assert await bench.metadata(run_id) == {"stopped": True}


@pytest.mark.parametrize("ends", ["returns", "raises", "is cancelled"])
@pytest.mark.parametrize("is_async", [True, False], ids=["async hook", "def hook"])
async def test_on_cancel_may_wait_for_what_the_function_ends_with(
    bench: Bench, ends: str, is_async: bool
) -> None:
    begun, got = anyio.Event(), list[Any]()

    async def stopping() -> str:
        begun.set()
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            if ends == "raises":
                raise ValueError("while stopping") from None
            if ends == "is cancelled":
                raise
        return "the rest"

    async def hook(run_promise: RunPromise) -> None:
        try:
            got.append(await run_promise)
        except ValueError as error:
            got.append(str(error))

    def def_hook(run_promise: RunPromise) -> None:
        try:
            got.append(run_promise.result(5))
        except ValueError as error:
            got.append(str(error))

    made = defined(stopping, on_cancel=hook if is_async else def_hook)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await begun.wait()
        await bench.engine.runs.cancel(bench.env, run_id)
        assert (await bench.until(run_id)).status == "CANCELED"
    assert got == [{"returns": "the rest", "raises": "while stopping"}.get(ends)]


async def test_an_error_of_on_cancel_is_told_and_the_others_are_called(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    begun, told = anyio.Event(), list[str]()

    async def waiting() -> None:
        begun.set()
        await anyio.sleep_forever()

    tasks.on_cancel(raising)
    made = defined(waiting, on_cancel=lambda: told.append("own"))
    async with bench.worker(made):
        run_id = await bench.start(made)
        await begun.wait()
        await bench.engine.runs.cancel(bench.env, run_id)
        assert (await bench.until(run_id)).status == "CANCELED"
    assert told == ["own"] and "the on_cancel hook" in caplog.text


async def run_out(worker: Worker, run_id: str) -> None:
    """Have the time of an attempt be over now, as its timer would."""
    inside, promise = cast(Any, worker), Future[None]()
    executor = inside._tenure.executor

    def interrupt() -> None:
        promise.set_result(executor.interrupt(run_id, Interruption.TIME_OUT))

    inside._loop.call_soon_threadsafe(interrupt)
    await asyncio.wrap_future(promise)


async def test_time_that_is_over_calls_no_hook_but_unwinds_the_middleware(bench: Bench) -> None:
    told, begun = list[str](), anyio.Event()

    async def slow() -> None:
        begun.set()
        await anyio.sleep_forever()

    async def middleware(next: Next) -> None:
        await next()
        told.append("out")

    kinds = ("on_success", "on_failure", "on_complete", "catch_error", "on_cancel", "cleanup")
    never: dict[str, Any] = {kind: lambda _kind=kind: told.append(_kind) for kind in kinds}
    made = defined(slow, max_duration=60, middleware=middleware, **never)
    async with bench.worker(made) as worker:
        run_id = await bench.start(made)
        await begun.wait()
        await run_out(worker, run_id)
        row = await bench.until(run_id)
    assert (row.status, told) == ("TIMED_OUT", ["out"])


async def test_time_does_not_run_out_once_the_function_has_ended(bench: Bench) -> None:
    async def quick() -> str:
        return "in time"

    async def slow_hook(ctx: Context) -> None:
        await run_out(workers[0], ctx.run.id)
        await anyio.sleep(0.05)  # an interruption would be felt here

    workers: list[Worker] = []
    made = defined(quick, max_duration=60, on_success=slow_hook)
    async with bench.worker(made) as worker:
        workers.append(worker)
        row = await bench.finished(made)
    assert (row.status, row.output) == ("COMPLETED", '"in time"')


async def test_a_cancellation_lets_the_hooks_of_an_outcome_finish(bench: Bench) -> None:
    begun, told = anyio.Event(), list[str]()

    async def quick() -> None: ...

    async def slow_hook() -> None:
        begun.set()
        await anyio.sleep(0.2)  # a cancellation would be felt here
        told.append("on_success")

    made = defined(quick, on_success=slow_hook, on_cancel=lambda: told.append("on_cancel"))
    async with bench.worker(made):
        run_id = await bench.start(made)
        await begun.wait()
        await bench.engine.runs.cancel(bench.env, run_id)
        assert (await bench.until(run_id)).status == "CANCELED"
    assert told == ["on_success", "on_cancel"]


async def test_hooks_write_metadata_and_streams_before_the_end_is_told(bench: Bench) -> None:
    async def quick() -> str:
        return "out"

    async def writing(output: str) -> None:
        metadata.set("output", output)
        await streams.append("log", "from on_success")

    made = defined(quick, on_success=writing)
    async with bench.worker(made):
        row = await bench.finished(made)
    assert await bench.metadata(row.id) == {"output": "out"}
    assert await bench.chunks(row.id, "log") == ["from on_success"]


# Waits -------------------------------------------------------------------------------------------


@ways
async def test_hooks_around_a_wait_are_told_what_the_run_waits_for(
    bench: Bench, on_loop: bool, is_async: bool
) -> None:
    told: list[Any] = []

    def child(payload: int) -> int:
        told.append("child")
        return payload

    async def awaiting(payload: int, ctx: Context, init: Any) -> object:
        result = await made_child.trigger_and_wait(payload)
        await wait.for_(0.3)
        return result.unwrap()

    def blocking(payload: int, ctx: Context, init: Any) -> object:
        result = made_child.sync.trigger_and_wait(payload)
        wait.sync.for_(0.3)
        return result.unwrap()

    def note(kind: str) -> Hook:
        def what(wait: WaitInfo, init: Any, **_: Any) -> tuple[str, str, int, bool]:
            return (kind, wait.type, len(wait.run_ids), wait.until is not None)

        return noting(told, what, is_async)

    made_child = defined(child)
    parent = defined(
        awaiting if on_loop else blocking, on_wait=note("on_wait"), on_resume=note("on_resume")
    )
    async with bench.worker(parent, made_child):
        row = await bench.finished(parent, 7)
    assert (row.status, row.output) == ("COMPLETED", "7"), row.error
    # The child is triggered before the run is said to wait for it: it may run meanwhile.
    assert [each for each in told if each != "child"] == [
        ("on_wait", "run", 1, False),
        ("on_resume", "run", 1, False),
        ("on_wait", "time", 0, True),
        ("on_resume", "time", 0, True),
    ]


async def test_an_error_of_on_wait_is_raised_by_the_wait(bench: Bench) -> None:
    async def waiting() -> str:
        try:
            await wait.for_(60)
        except RuntimeError as error:
            return str(error)
        return "waited"

    made = defined(waiting, on_wait=raising)
    async with bench.worker(made):
        assert (await bench.finished(made)).output == '"in the hook itself"'


async def test_code_that_is_replayed_calls_its_hooks_again_but_for_on_start(bench: Bench) -> None:
    told: list[str] = []

    def note(kind: str) -> Hook:
        async def hook() -> None:
            told.append(kind)
            metadata.increment(kind)
            await metadata.flush()

        return hook

    async def waiting() -> None:
        told.append("run")
        metadata.increment("run")
        await wait.for_(60)
        told.append("after")

    kinds = ("init", "on_start", "on_start_attempt", "on_wait", "on_resume", "on_success")
    hooks: dict[str, Any] = {kind: note(kind) for kind in kinds}
    made = defined(waiting, **hooks)
    async with bench.worker(made):
        run_id = await bench.start(made)
        await bench.until(run_id, "WAITING")
    # Another worker, when the time has come.
    await bench.sql("update runwire.runs set wake_at = now() where id = %(id)s", id=run_id)
    await bench.sql("update runwire.waits set due_at = now() where due_at is not null")
    async with bench.worker(made):
        row = await bench.until(run_id)
    assert row.status == "COMPLETED"
    first = ["init", "on_start", "on_start_attempt", "run", "on_wait"]
    assert told == [*first, "init", "on_start_attempt", "run", "after", "on_success"]
    # What they wrote is not written again.
    assert await bench.metadata(run_id) == {
        "init": 1,
        "on_start": 1,
        "on_start_attempt": 1,
        "run": 1,
        "on_wait": 1,
        "on_success": 1,
    }
