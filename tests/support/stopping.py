"""Stopping a Postgres in every way short of destroying it."""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from runwire_engine.embedded import EmbeddedPostgres


def processes_of(postgres: EmbeddedPostgres) -> list[int]:
    """Return the process ids of a running server, the postmaster's first."""
    postmaster = postgres.process_id
    assert postmaster is not None
    found = [postmaster]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == postmaster:
            found.append(int(entry.name))
    return found


@contextmanager
def frozen(postgres: EmbeddedPostgres) -> Generator[None]:
    """SIGSTOP the whole server for a block: sockets stay open, nobody answers."""
    stopped: list[int] = []
    try:
        # Again until none is new: the postmaster may have been starting one.
        while new := [pid for pid in processes_of(postgres) if pid not in stopped]:
            for pid in new:
                _send(pid, signal.SIGSTOP)
            stopped += new
        yield
    finally:
        for pid in stopped:
            _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
