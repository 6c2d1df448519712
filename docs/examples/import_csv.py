"""Import a CSV file: progress row by row, bad rows reported, totals returned.

A `def` task: it runs in a thread, so that plain blocking code is fine. Try it on
docs/examples/data/orders.csv, which has some bad rows.
"""

import csv
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, Field

from runwire import AbortTaskRunError, metadata, streams, task

REPORTED_BAD_ROWS = 100  # metadata is bounded, so the list of bad rows is too; the count is not


class CsvFile(BaseModel):
    """Which file, and which of its columns hold numbers."""

    path: str = "docs/examples/data/orders.csv"
    numeric: list[str] = Field(default=["quantity", "price"])
    progress_every: int = Field(default=100, ge=1)


class Imported(BaseModel):
    """How it went; `totals` sums the numeric columns over the good rows."""

    rows: int
    bad_rows: int
    totals: dict[str, float]


class BadRow(Exception):
    """A row that cannot be imported; the message says why."""


def check_header(header: list[str] | None, numeric: list[str]) -> list[str]:
    """Return the header when it has every numeric column."""
    missing = sorted(set(numeric) - set(header or []))
    if header is None or missing:
        raise AbortTaskRunError(f"the file has no column {', '.join(missing) or 'at all'}")
    return header


def numbers(header: list[str], row: list[str], numeric: list[str]) -> dict[str, float]:
    """Return the numeric cells of a row. Raises BadRow when it does not fit the header."""
    if len(row) != len(header):
        raise BadRow(f"{len(row)} cells where the header has {len(header)}")
    cells = dict(zip(header, row, strict=True))
    try:
        return {column: float(cells[column]) for column in numeric}
    except ValueError as error:
        raise BadRow(str(error)) from None


def rows(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line it ends on."""
    reader = csv.reader(file)
    for row in reader:
        yield reader.line_num, row


@task(id="import-csv", retry={"max_attempts": 1})
def import_csv(payload: CsvFile) -> Imported:
    """Import a CSV file given by its path on the worker's machine."""
    path = Path(payload.path)
    if not path.is_file():
        raise AbortTaskRunError(f"there is no file {payload.path}")
    good = bad = 0
    totals = dict.fromkeys(payload.numeric, 0.0)
    metadata.set("progress", {"rows": 0, "bad": 0, "percent": 0}).set("badRows", [])
    with path.open("rb") as raw, TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        lines = rows(file)
        header = check_header(next(lines, (0, None))[1], payload.numeric)
        for line, row in lines:
            try:
                for column, value in numbers(header, row, payload.numeric).items():
                    totals[column] += value
                good += 1
            except BadRow as reason:
                bad += 1
                if bad <= REPORTED_BAD_ROWS:
                    metadata.append("badRows", {"line": line, "reason": str(reason)})
                streams.sync.append("bad-rows", f"line {line}: {reason}\n")
            if (good + bad) % payload.progress_every == 0:
                percent = round(100 * raw.tell() / max(1, path.stat().st_size))
                metadata.set("progress", {"rows": good, "bad": bad, "percent": percent})
    metadata.set("progress", {"rows": good, "bad": bad, "percent": 100})
    return Imported(rows=good, bad_rows=bad, totals={k: round(v, 2) for k, v in totals.items()})
