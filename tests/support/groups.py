"""How processes share the tests: in groups, and what becomes of the group of a process that died.

pytest-xdist gives the tests of a dead process to its replacement, first the test it died of: one
that hangs would be run until its time is up by sixteen processes in turn. And where the dead one
had ended a group, the next waits for ever for a result of that. Here a test is run once.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]


class Groups(LoadFileScheduling):  # type: ignore[misc]
    """Gives each process a group of tests, and one more when it is nearly through."""

    def __init__(self, config: pytest.Config, log: Any, group: Callable[[str], str]) -> None:
        super().__init__(config, log)
        self._group = group

    def _split_scope(self, nodeid: str) -> str:
        return self._group(nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """Forget a process; return the test it died of. Its other tests are given to others."""
        groups = self.assigned_work[node]
        died_of = next(self._open(groups), None)
        if died_of is not None:
            group, test = died_of
            groups[group][test] = True
        left = {group for group, _ in self._open(groups)}
        self.assigned_work[node] = {group: groups[group] for group in groups if group in left}
        super().remove_node(node)
        return died_of and died_of[1]

    def schedule(self) -> None:
        """Give work to processes that have little: two tests at least, as one waits for a next."""
        is_first = self.collection is None
        super().schedule()
        if not is_first:
            for node in self.nodes:
                self._reschedule(node)

    def _reschedule(self, node: WorkerController) -> None:
        """Give a process more work, once it has said which tests it knows."""
        if node in self.registered_collections:
            super()._reschedule(node)

    @staticmethod
    def _open(groups: dict[str, dict[str, bool]]) -> Iterator[tuple[str, str]]:
        """Go through the tests that have not ended, in their order."""
        for group, tests in groups.items():
            for test, has_ended in tests.items():
                if not has_ended:
                    yield group, test
