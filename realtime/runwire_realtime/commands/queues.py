"""`runwire queues …`: what waits and executes in which queue, and how much may at once.

They ask the server at RUNWIRE_API_URL with RUNWIRE_API_KEY.
"""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runwire import queues
from runwire.queues import Queue
from runwire_realtime.commands.terminal import plain, print_table, run_command

_out = Console(highlight=False)

Name = Annotated[
    str,
    typer.Argument(help="By its name, as emails or task/welcome, or its id.", metavar="QUEUE"),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(help="Look at queues, pause and limit them.", no_args_is_help=True)
    group.command("list")(list_queues)
    group.command("pause")(pause)
    group.command("resume")(resume)
    group.command("limit")(limit)
    app.add_typer(group, name="queues")


def list_queues() -> None:
    """List queues, with what executes and waits in each."""

    async def work() -> None:
        table = Table(box=None)
        for name in ("queue", "running", "queued", "limit", ""):
            table.add_column(name, no_wrap=name == "queue")
        async for queue in queues.list(per_page=100):
            table.add_row(
                escape(plain(_name(queue))),
                str(queue.running),
                str(queue.queued),
                _limit(queue),
                "[yellow]paused[/yellow]" if queue.paused else "",
            )
        print_table(_out, table, "no queues")

    run_command(work())


def pause(queue: Name) -> None:
    """Start nothing of a queue any more; what executes goes on."""

    async def work() -> None:
        _out.print(f"paused {escape(plain(_name(await queues.pause(queue))))}")

    run_command(work())


def resume(queue: Name) -> None:
    """Have a paused queue go on."""

    async def work() -> None:
        _out.print(f"resumed {escape(plain(_name(await queues.resume(queue))))}")

    run_command(work())


def limit(
    queue: Name,
    limit: Annotated[
        int | None,
        typer.Argument(help="How many of its runs execute at once.", min=0, max=100_000),
    ] = None,
    reset: Annotated[bool, typer.Option(help="Go back to the limit in code.")] = False,
) -> None:
    """Put another limit in place of the one in code, or take it back with --reset."""
    if (limit is None) is not reset:
        raise typer.BadParameter("give a limit, or --reset")

    async def work() -> None:
        if limit is None:
            changed = await queues.reset_concurrency_limit(queue)
        else:
            changed = await queues.override_concurrency_limit(queue, limit)
        _out.print(f"{escape(plain(_name(changed)))}: {_limit(changed)}")

    run_command(work())


def _name(queue: Queue) -> str:
    return f"task/{queue.name}" if queue.type == "task" else queue.name


def _limit(queue: Queue) -> str:
    current = "none" if queue.concurrency_limit is None else str(queue.concurrency_limit)
    if queue.concurrency.override is None:
        return current
    base = queue.concurrency.base
    return f"{current} (in code {'none' if base is None else base})"
