"""The commands of `runwire`, one module per noun."""

import sys

import typer

from runwire_realtime.commands import keys, processes, queues, runs, schedules
from runwire_realtime.commands.failure import one_line

app = typer.Typer(
    name="runwire",
    help="Run tasks and stream them live.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
processes.add_to(app)
runs.add_to(app)
schedules.add_to(app)
queues.add_to(app)
keys.add_to(app)


def run() -> None:
    """Run the command line; a failure that was foreseen is one line and exit code 1."""
    try:
        app()
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        sys.stderr.write(f"runwire: {line}\n")
        raise SystemExit(1) from None
