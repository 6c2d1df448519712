"""`runwire trigger` and `runwire runs …`: the Python client at a terminal.

They ask the server at RUNWIRE_API_URL with RUNWIRE_API_KEY (or RUNWIRE_ACCESS_TOKEN).
"""

import sys
from datetime import datetime
from typing import Annotated, Any, Final, cast

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runwire import runs, tasks
from runwire._log_line import LogLevel
from runwire.durations import seconds
from runwire.requests import RunStatus
from runwire.values import decode
from runwire.wire import Json
from runwire_realtime.commands.terminal import plain, print_table, run_command

_out = Console(highlight=False)
_progress = Console(stderr=True, highlight=False)
_COLOURS: Final = {
    "COMPLETED": "green",
    "FAILED": "red",
    "CRASHED": "red",
    "SYSTEM_FAILURE": "red",
    "TIMED_OUT": "red",
    "CANCELED": "yellow",
    "EXPIRED": "yellow",
    "EXECUTING": "cyan",
}
_LEVEL_COLOURS: Final = {"debug": "dim", "warn": "yellow", "error": "red"}

RunId = Annotated[str, typer.Argument(help="The run, as run_….", metavar="RUN")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag; may be given several times.")]
Payload = Annotated[str | None, typer.Argument(help="JSON; - reads it from standard input.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("trigger")(trigger)
    group = typer.Typer(help="Look at runs, follow, stop and repeat them.", no_args_is_help=True)
    group.command("list")(list_runs)
    group.command("show")(show)
    group.command("tail")(tail)
    group.command("logs")(logs)
    group.command("cancel")(cancel)
    group.command("reschedule")(reschedule)
    group.command("replay")(replay)
    app.add_typer(group, name="runs")


def trigger(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    payload: Payload = None,
    tag: Tags = None,
    delay: Annotated[str | None, typer.Option(help="Start later: 10s, 1h30m.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key, the same run.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show it as it runs.")] = False,
) -> None:
    """Start a run of a task and print its id."""

    async def work() -> None:
        options: dict[str, Any] = {"tags": tag, "delay": delay, "idempotency_key": idempotency_key}
        given = {name: value for name, value in options.items() if value}
        handle = await tasks.trigger(task, _payload(payload), **given)
        _out.print(handle.id)
        if follow:
            await _follow(handle.id)

    run_command(work())


def list_runs(
    status: Annotated[list[str] | None, typer.Option(help="Only this status.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task.")] = None,
    tag: Tags = None,
    parent: Annotated[str | None, typer.Option(help="Only what this run triggered.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Only what this schedule started.")] = None,
    period: Annotated[str | None, typer.Option(help="Created in the last 10m, 2d.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
) -> None:
    """List runs, newest first."""

    async def work() -> None:
        table = Table(box=None)
        for name in ("run", "task", "status", "created", "took", "tags"):
            table.add_column(name, no_wrap=name in {"run", "status"})
        chosen = cast(list[RunStatus] | None, [one.upper() for one in status] if status else None)
        found = runs.list(
            status=chosen,
            task=task,
            tag=tag,
            parent=parent,
            schedule=schedule,
            created_in_last=None if period is None else seconds(period),
            page_size=min(limit, 100),
        )
        async for run in found:
            table.add_row(
                run.id,
                escape(plain(run.task_identifier)),
                _coloured(run.status),
                _when(run.created_at),
                _took(run),
                escape(plain(" ".join(run.tags))),
            )
            if table.row_count >= limit:
                break
        print_table(_out, table, "no runs")

    run_command(work())


def show(run: RunId) -> None:
    """Print a run, whole, as JSON."""

    async def work() -> None:
        _out.print_json(orjson.dumps((await runs.retrieve(run)).raw).decode())

    run_command(work())


def tail(run: RunId) -> None:
    """Follow a run until it is over: states to standard error, stream chunks to standard output."""
    run_command(_follow(run))


def logs(
    run: RunId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run is over.")
    ] = False,
    level: Annotated[
        str, typer.Option(help="The least urgent lines: debug, info, log, warn, error.")
    ] = "debug",
) -> None:
    """Print the log of a run: time, level, message, attributes."""

    async def work() -> None:
        async for entry in runs.logs(run, level=cast(LogLevel, level), follow=follow):
            _out.print(_logged(entry), soft_wrap=True)

    run_command(work())


def cancel(run: RunId) -> None:
    """Stop a run."""
    run_command(runs.cancel(run))
    _out.print(f"asked {run} to stop")


def reschedule(
    run: RunId,
    delay: Annotated[str, typer.Argument(help="From now on: 10s, 1h30m; or an ISO 8601 time.")],
) -> None:
    """Have a delayed run wait until another time."""

    async def work() -> None:
        moved = await runs.reschedule(run, delay=delay)
        _out.print(f"{moved.id} waits until {_when(moved.delayed_until or moved.updated_at)}")

    run_command(work())


def replay(
    run: RunId,
    payload: Annotated[str | None, typer.Option(help="Another payload, as JSON.")] = None,
) -> None:
    """Start a run again, as a new one, and print its id."""

    async def work() -> None:
        changed = {} if payload is None else {"payload": _payload(payload)}
        _out.print((await runs.replay(run, **changed)).id)

    run_command(work())


async def _follow(run_id: str) -> None:
    status, is_open_line = "", False
    async for event in runs.subscribe_to_run(run_id).with_streams():
        if event.type != "run":
            is_open_line = _write(event.chunk)
        elif event.run.status != status:
            status = event.run.status
            if is_open_line and sys.stdout.isatty():  # both go to one terminal
                is_open_line = _write("\n")
            _progress.print(f"[dim]{run_id}[/dim] {_coloured(status)}")
    if is_open_line:
        _write("\n")
    last = await runs.retrieve(run_id)
    if last.error is not None:
        _progress.print(f"[red]{escape(plain(f'{last.error.name}: {last.error.message}'))}[/red]")
    elif last.output is not None:
        _progress.print_json(orjson.dumps(last.output).decode())
    if not last.is_success:
        raise SystemExit(1)


def _write(chunk: Json) -> bool:
    """Write a chunk as it reads best: text grows, anything else is a line of JSON.

    Return whether the last line is still open.
    """
    text = chunk if isinstance(chunk, str) else orjson.dumps(chunk).decode() + "\n"
    sys.stdout.write(plain(text))
    sys.stdout.flush()
    return not text.endswith("\n")


def _logged(entry: runs.LogEntry) -> str:
    colour = _LEVEL_COLOURS.get(entry.level, "white")
    rest = f" {orjson.dumps(entry.attributes).decode()}" if entry.attributes else ""
    name = f"{entry.logger}: " if entry.logger else ""
    # A message of several lines is one entry still.
    text = escape(plain(f"{name}{entry.message}{rest}"))
    at = entry.time.astimezone().strftime("%H:%M:%S.%f")[:-3]
    return f"[dim]{at}[/dim] [{colour}]{entry.level:<5}[/{colour}] {text}"


def _payload(text: str | None) -> Json:
    if text is None:
        return None
    return decode(sys.stdin.read() if text == "-" else text, what="payload")


def _coloured(status: str) -> str:
    colour = _COLOURS.get(status, "white")
    return f"[{colour}]{status}[/{colour}]"


def _when(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _took(run: runs.Run) -> str:
    return "" if run.started_at is None else f"{(run.duration_ms or 0) / 1000:.1f} s"
