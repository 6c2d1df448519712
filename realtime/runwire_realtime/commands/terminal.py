"""What is printed: text of others without what could rewrite a terminal, and lists."""

import re
from typing import Final

from rich.console import Console
from rich.table import Table

_ESCAPES = re.compile(r"\x1b\[[0-9;?]{0,32}[ -/]{0,4}[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Wider than any row.
_WHOLE: Final = 100_000


def plain(text: str) -> str:
    """Return text without escapes and control characters, but for tabs and line ends."""
    return _ESCAPES.sub("", text)


def print_table(out: Console, table: Table) -> None:
    """Print a table as wide as the terminal; into a pipe or a file, each row whole on its line."""
    wide = out if out.is_terminal else Console(file=out.file, width=_WHOLE, highlight=False)
    wide.print(table)
