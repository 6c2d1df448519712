"""Processes that follow runs (`tests/faults/programs/follow.py`), and what they printed."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.history import ClientLog
from tests.support.processes import Process


@dataclass
class Follower:
    """A process that follows runs, and what it printed."""

    name: str
    mode: Literal["latest", "every"]
    has_streams: bool
    process: Process
    # None: every run.
    runs: Sequence[str] | None = None

    def lines(self) -> list[dict[str, Any]]:
        whole = self.process.output().split("\n")[:-1]
        return [json.loads(line) for line in whole if line.startswith("{")]

    def log(self, ledger_runs: Sequence[str], streams: Sequence[tuple[str, str]]) -> ClientLog:
        """Return what it saw; what it asked for and did not see is in there too."""
        log = ClientLog(self.name, self.mode)
        wanted = ledger_runs if self.runs is None else self.runs
        for run_id in wanted:
            keys = [key for run, key in streams if run == run_id and self.has_streams]
            log.follows(run_id, *keys)
        for line in self.lines():
            match line:
                case {"gap": str(reason), "run": run}:
                    log.saw_gap(run, reason)
                case {"run": run, "revision": int(revision), "status": status}:
                    log.saw_run(run, revision, status)
                case {"run": run, "stream": stream, "seq": int(seq), "chunk": value}:
                    log.saw_chunk(run, stream, seq, value)
                case _:
                    assert "done" in line or "live" in line, line
        return log

    def last_states(self) -> dict[str, dict[str, Any]]:
        states = [line for line in self.lines() if "revision" in line]
        return {line["run"]: line for line in states}


def told(name: str, process: Process) -> Callable[..., None]:
    """Return what shows, when the test fails, what a process said last."""

    def tell(kind: object, error: object, trace: object) -> None:
        if kind is not None:
            said = process.output()[-3000:]
            sys.stderr.write(f"\n-- {name} ({process.exit_code}) --\n{said}\n")

    return tell
