"""`runwire schedules …`: the schedules of a server, by its API."""

from datetime import datetime
from typing import Annotated, Literal

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runwire import schedules
from runwire.schedules import Schedule
from runwire_realtime.commands.terminal import plain, print_table, run_command

_out = Console(highlight=False)

ScheduleName = Annotated[str, typer.Argument(help="The schedule, as sched_….", metavar="SCHEDULE")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(help="Tasks that run by themselves.", no_args_is_help=True)
    group.command("list")(list_schedules)
    group.command("show")(show)
    group.command("create")(create)
    group.command("activate")(activate)
    group.command("deactivate")(deactivate)
    group.command("delete")(delete)
    app.add_typer(group, name="schedules")


def list_schedules(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 100,
) -> None:
    """List schedules, oldest first."""

    async def work() -> None:
        table = Table(box=None)
        for name in ("schedule", "task", "cron", "time zone", "next run", "state"):
            table.add_column(name, no_wrap=name == "schedule")
        async for schedule in schedules.list(per_page=min(limit, 100)):
            table.add_row(
                schedule.id,
                escape(plain(schedule.task)),
                escape(plain(schedule.cron)),
                escape(plain(schedule.timezone)),
                _when(schedule.next_run),
                escape(plain(_state(schedule))),
            )
            if table.row_count >= limit:
                break
        print_table(_out, table, "no schedules")

    run_command(work())


def show(schedule: ScheduleName) -> None:
    """Print a schedule, whole, as JSON."""

    async def work() -> None:
        found = await schedules.retrieve(schedule)
        _out.print_json(orjson.dumps(found.raw).decode())

    run_command(work())


def create(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    cron: Annotated[str, typer.Argument(help="Five fields, in quotes.")],
    key: Annotated[str, typer.Option(help="The same key, the same schedule.")],
    timezone: Annotated[str, typer.Option(help="IANA, as Europe/Berlin.")] = "UTC",
    external_id: Annotated[str | None, typer.Option(help="Handed to each run.")] = None,
    window: Annotated[str | None, typer.Option(help="Spread runs over 30m, 2h, 50%.")] = None,
    missed: Annotated[
        Literal["newest", "all"], typer.Option(help="Which missed ticks get a run.")
    ] = "newest",
) -> None:
    """Make a schedule, or change the one of the same key, and print its id."""

    async def work() -> None:
        made = await schedules.create(
            task=task,
            cron=cron,
            deduplication_key=key,
            timezone=timezone,
            external_id=external_id,
            window=window,
            missed=missed,
        )
        _out.print(made.id)

    run_command(work())


def activate(schedule: ScheduleName) -> None:
    """Have a schedule tick again, from now on."""

    async def work() -> None:
        _out.print(f"next run {_when((await schedules.activate(schedule)).next_run)}")

    run_command(work())


def deactivate(schedule: ScheduleName) -> None:
    """Have a schedule stand still until it is activated."""
    run_command(schedules.deactivate(schedule))
    _out.print(f"{schedule} stands still")


def delete(schedule: ScheduleName) -> None:
    """Delete a schedule that was made by a call; its runs stay."""
    run_command(schedules.del_(schedule))
    _out.print(f"deleted {schedule}")


def _state(schedule: Schedule) -> str:
    if not schedule.active:
        return "inactive"
    if schedule.error is not None:
        return schedule.error
    return "waits for a worker" if schedule.suspended else "active"


def _when(at: datetime | None) -> str:
    return "never" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
