"""`runwire dev`, `server`, `worker`, `migrate` and `rotate-epoch`."""

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import anyio
import typer
from rich.console import Console

from runwire_engine.migrations import migrate as migrate_database
from runwire_realtime.logs import configure_logging

if TYPE_CHECKING:
    from runwire_realtime.dev import Running

DEFAULT_PORT: Final = 8420
_shown = Console(highlight=False, soft_wrap=True)

Modules = Annotated[
    list[str] | None,
    typer.Argument(help="Modules, files or folders that define tasks.", metavar="MODULE..."),
]
Port = Annotated[int, typer.Option(help="The port to listen on.", min=0, max=65535)]
Host = Annotated[str, typer.Option(help="The address to listen on.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("dev")(dev)
    app.command("server")(server)
    app.command("worker")(worker)
    app.command("migrate")(migrate)
    app.command("rotate-epoch")(rotate_epoch)


def dev(
    modules: Modules = None,
    port: Port = DEFAULT_PORT,
    host: Host = "127.0.0.1",
    data: Annotated[Path, typer.Option(help="The folder for everything kept.")] = Path(".runwire"),
    reload: Annotated[bool, typer.Option(help="Restart the worker on changes.")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """Run everything on this machine: an embedded Postgres, the server and a worker."""
    from runwire_realtime.dev import DevOptions, run_dev

    configure_logging(logging.INFO if verbose else logging.WARNING)
    options = DevOptions(
        modules=modules or [],
        host=host,
        port=port,
        folder=data,
        database_url=os.environ.get("RUNWIRE_DATABASE_URL") or None,
        api_key=os.environ.get("RUNWIRE_API_KEY") or None,
        secret=os.environ.get("RUNWIRE_SECRET") or None,
        reload=reload,
    )
    _run(lambda: run_dev(options, _say, _show))


def server(
    port: Annotated[int | None, typer.Option(help="Instead of RUNWIRE_PORT.")] = None,
    host: Annotated[str | None, typer.Option(help="Instead of RUNWIRE_HOST.")] = None,
    processes: Annotated[
        int, typer.Option(help="So many servers that share the port: one for each core.", min=1)
    ] = 1,
) -> None:
    """Run the HTTP API, the hub and the dashboard. Any number may run on one database."""
    from runwire_realtime.parent import die_with_parent, report
    from runwire_realtime.server import run_server
    from runwire_realtime.server_processes import run_servers
    from runwire_realtime.settings import read_settings

    die_with_parent()
    configure_logging()
    given = {"port": port, "host": host}
    settings = read_settings(**{name: at for name, at in given.items() if at is not None})
    if processes > 1:
        _run(lambda: run_servers(settings, processes, _say))
        return
    try:
        _run(lambda: run_server(settings, _say))
    except Exception as error:
        from runwire_realtime.commands.failure import one_line

        # With several servers the parent shows the line, once.
        if report(one_line(error) or f"the server failed: {type(error).__name__}"):
            raise SystemExit(1) from None
        raise


def worker(modules: Modules = None) -> None:
    """Execute tasks. Needs RUNWIRE_DATABASE_URL, as workers speak to Postgres directly."""
    from runwire_realtime.parent import die_with_parent, report
    from runwire_realtime.worker import run_worker

    die_with_parent()
    configure_logging()
    try:
        _run(lambda: run_worker(modules or [], logging.getLogger("runwire.worker").info))
    except Exception as error:
        from runwire_realtime.commands.failure import one_line

        # Under `runwire dev` the parent shows the line, once.
        if report(one_line(error) or f"the worker failed: {type(error).__name__}"):
            raise SystemExit(1) from None
        raise


def migrate() -> None:
    """Bring the database to this version's schema."""
    from runwire_realtime.settings import database_address

    dsn = database_address()

    async def run() -> None:
        applied = await migrate_database(dsn)
        _say(f"applied {', '.join(applied)}" if applied else "the schema is up to date")

    _run(run)


def rotate_epoch() -> None:
    """Begin another history, after the database was restored: every subscriber starts over."""
    from runwire_engine.changes import begin_history
    from runwire_engine.database import Database
    from runwire_realtime.schema import require_schema
    from runwire_realtime.settings import database_address

    dsn = database_address()

    async def run() -> None:
        await require_schema(dsn)
        database = Database(dsn, max_size=1, name="runwire-rotate", statement_timeout="10min")
        await database.open()
        try:
            _say(f"the epoch is {await begin_history(database)} now")
        finally:
            await database.close()

    _run(run)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    async def call() -> None:
        await main()

    try:
        anyio.run(call, backend_options={"use_uvloop": os.name != "nt"})
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _show(running: "Running") -> None:
    from runwire_realtime.commands.first_steps import show

    show(running, _shown)


def _say(line: str) -> None:
    _shown.print(line, markup=False)
