"""Commands at a terminal: how one is run, and what is printed.

Text of others goes without what could rewrite a terminal.
"""

import re
from collections.abc import Coroutine
from typing import Any, Final

import anyio
from rich.console import Console
from rich.table import Table

_ESCAPES = re.compile(r"\x1b\[[0-9;?]{0,32}[ -/]{0,4}[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Wider than any row.
_WHOLE: Final = 100_000


def plain(text: str) -> str:
    """Return text without escapes and control characters, but for tabs and line ends."""
    return _ESCAPES.sub("", text)


def run_command(work: Coroutine[Any, Any, object]) -> None:
    """Run a command to its end; a Ctrl-C is the exit code 130, without a traceback."""

    async def call() -> None:
        await work

    try:
        anyio.run(call)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def print_table(out: Console, table: Table, empty: str = "") -> None:
    """Print a table, or what is said where it has no rows; its head alone where nothing is.

    It is as wide as the terminal; into a pipe or a file each row goes whole on its line.
    """
    if empty and not table.row_count:
        out.print(empty)
        return
    wide = out if out.is_terminal else Console(file=out.file, width=_WHOLE, highlight=False)
    wide.print(table)
