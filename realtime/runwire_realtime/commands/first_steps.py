"""What `runwire dev` prints once it is up: where to look, what to hold, lines to paste."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from urllib.parse import quote

from rich.console import Console

from runwire_realtime.dev import Running


def show(running: Running, out: Console) -> None:
    """Print what a person needs first."""
    out.print()
    out.print(f"  [bold]Runwire[/bold]      {running.address}")
    out.print(f"  dashboard    {running.sign_in_link}")
    out.print("               [dim](signs one browser in, once, within ten minutes)[/dim]")
    out.print(f"  API key      {running.api_key}", markup=False)
    out.print(f"  database     {running.database_url}", markup=False)
    out.print("  try, in another terminal")
    for line in lines_to_try(running, program(sys.argv[0], shutil.which("runwire"))):
        out.print(f"    {line}", markup=False)
    out.print()


def lines_to_try(running: Running, command: str) -> Sequence[str]:
    """Return lines for a shell, each working by itself once the first was pasted."""
    export = (
        f"export RUNWIRE_API_URL={shlex.quote(running.address)}"
        f" RUNWIRE_API_KEY={shlex.quote(running.api_key)}"
    )
    bearer = '-H "Authorization: Bearer $RUNWIRE_API_KEY"'
    example = running.example
    if example is None:
        return (export, f'curl "$RUNWIRE_API_URL/api/v1/tasks" {bearer}')
    payload = "" if example.payload is None else f" {shlex.quote(example.payload)}"
    body = json.dumps({} if example.payload is None else {"payload": example.payload})
    path = f"/api/v1/tasks/{quote(example.task)}/trigger"
    return (
        export,
        f"{command} trigger {shlex.quote(example.task)}{payload} --follow",
        f'curl "$RUNWIRE_API_URL{path}" {bearer} --data {shlex.quote(body)}',
    )


def program(typed: str, on_path: str | None) -> str:
    """Return how a shell in this folder starts the program that was typed (sys.argv[0]).

    A shell that found it by PATH hands on an absolute path. One typed with its folder, as
    `make run` does, is shown with it, whatever PATH make itself has.
    """
    if not os.access(typed, os.X_OK) or typed.endswith(".py"):
        return f"{shlex.quote(sys.executable)} -m runwire_realtime.cli"
    if os.path.isabs(typed):
        if on_path is not None and os.path.samefile(typed, on_path):
            return "runwire"
        below = os.path.relpath(typed)
        return shlex.quote(typed if below.startswith("..") else below)
    return shlex.quote(typed)
