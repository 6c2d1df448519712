"""What the suite found, read from its JSON report."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# What a case may end as without being a failure.
_GOOD: Final = frozenset({"OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"})


@dataclass(frozen=True)
class Report:
    """The verdicts of one side, by case: of what was done, and of how the socket was closed."""

    agent: str
    verdicts: dict[str, tuple[str, str]]

    @property
    def failed(self) -> dict[str, str]:
        """The cases that failed, with both verdicts."""
        return {
            case: " / ".join(verdict)
            for case, verdict in self.verdicts.items()
            if not set(verdict) <= _GOOD
        }

    def counts(self) -> Counter[str]:
        """Count the cases by what they ended as; a bad close counts as a failure."""
        failed = self.failed
        return Counter(
            "FAILED" if case in failed else verdict[0] for case, verdict in self.verdicts.items()
        )

    def ended_as(self, word: str) -> list[str]:
        return [case for case, verdict in self.verdicts.items() if verdict[0] == word]


def read_report(folder: Path, agent: str) -> Report:
    """Read the report of an agent from the suite's output folder."""
    found = json.loads((folder / "index.json").read_text())[agent]
    verdicts = {
        case: (result["behavior"], result["behaviorClose"]) for case, result in found.items()
    }
    return Report(agent, dict(sorted(verdicts.items(), key=lambda item: _place(item[0]))))


def _place(case: str) -> tuple[int, ...]:
    return tuple(int(part) for part in case.split("."))


def table(report: Report, seconds: float) -> str:
    """Return the report as text: counts, and every case that was not simply OK."""
    counts = report.counts()
    lines = [
        f"{report.agent}: {len(report.verdicts)} cases in {seconds:.0f} s: "
        + ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    ]
    lines += [f"  FAILED {case}: {verdict}" for case, verdict in report.failed.items()]
    for word in ("NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"):
        cases = report.ended_as(word)
        if cases:
            lines.append(f"  {word}: {', '.join(cases)}")
    return "\n".join(lines)
