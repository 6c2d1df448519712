"""What an idle socket with one subscription costs the hub: its resident memory, divided.

The sockets are open in a process of their own, each follows the same run and a stream of it, and
nothing happens. A tenth of them is there before it is measured, so that what a server needs once,
however many come, is not counted.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread

from tests.benchmarks import generator
from tests.benchmarks.comparison import OURS, Column, Comparison, Figures, Goal, in_turn
from tests.benchmarks.generator import Load
from tests.benchmarks.sources import ours
from tests.benchmarks.stand import Stand, serving

_PAGE = os.sysconf("SC_PAGE_SIZE")
_BOUND = 28


def tables(stand: Stand, rounds: int, *, short: bool) -> Iterator[Comparison]:
    """Measure with 5 000 sockets; in short form, with 1 000."""
    sockets = 1000 if short else 5000
    yield in_turn(
        f"memory of the hub, {sockets:,} idle sockets with one subscription",
        {OURS: partial(_measure, stand, sockets)},
        rounds=rounds,
        columns=[Column("socket", "KiB/socket", ".1f"), Column("process", "MiB in all", ".1f")],
        goals=[Goal("socket", _BOUND, most=True)],
        command="python -m tests.benchmarks memory",
    )


def _measure(stand: Stand, sockets: int) -> Figures:
    with serving(stand) as running, ours(running) as source:
        load = replace(source.load, events=0, publish="", seconds=120)
        few = sockets // 10
        with _held(replace(load, sockets=few)):
            before = _resident(running.server)
            with _held(replace(load, sockets=sockets)):
                after = _resident(running.server)
    return {"socket": (after - before) / sockets / 1024, "process": after / 1024 / 1024}


class _held:
    """Sockets that are open for the length of a block."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._open, self._enough = Event(), Event()
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run)

    def _run(self) -> None:
        try:
            generator.run(self._load, once_ready=self._hold)
        except BaseException as error:
            self._failure = error
        finally:
            self._open.set()

    def _hold(self) -> None:
        self._open.set()
        self._enough.wait()

    def __enter__(self) -> None:
        self._thread.start()
        self._open.wait()
        self._raise()

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
