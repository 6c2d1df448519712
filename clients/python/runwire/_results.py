"""How a child run ended, for the run that waited for it.

result = await ship.trigger_and_wait(Order(id=1))
if result.ok is True:
    print(result.output)
else:
    print(result.error.message)
output = (await ship.trigger_and_wait(Order(id=1))).unwrap()
"""

from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeAlias, TypeVar

import orjson

from runwire._context import ChildResult
from runwire._run import RunError, run_error
from runwire._triggering import Parse
from runwire.errors import SubtaskUnwrapError

OutputT = TypeVar("OutputT")
RunsT = TypeVar("RunsT")


@dataclass(frozen=True)
class TaskRunSuccess(Generic[OutputT]):
    """A child run that completed."""

    id: str
    task_identifier: str
    output: OutputT
    ok: Literal[True] = True
    error: None = None

    def unwrap(self) -> OutputT:
        """Return the output."""
        return self.output


@dataclass(frozen=True)
class TaskRunFailure:
    """A child run that ended in any other way: it failed, expired, was canceled."""

    id: str
    task_identifier: str
    error: RunError
    ok: Literal[False] = False
    output: None = None

    def unwrap(self) -> NoReturn:
        """Raise SubtaskUnwrapError."""
        raise SubtaskUnwrapError(self.error, run_id=self.id, task_identifier=self.task_identifier)


TaskRunResult: TypeAlias = TaskRunSuccess[OutputT] | TaskRunFailure


@dataclass(frozen=True)
class BatchResult(Generic[RunsT]):
    """A batch that was waited for, and how its runs ended, in the order of its items."""

    id: str
    runs: RunsT


def result_of(child: ChildResult, parse: Parse | None) -> TaskRunResult[Any]:
    """Return how a child ended. Raises InvalidValueError for an output that its task has not."""
    if not child.ok:
        error = child.error or {"message": f"run {child.id} was {child.status.lower()}"}
        return TaskRunFailure(child.id, child.task, run_error(error))
    output = None if child.output is None else orjson.loads(child.output)
    return TaskRunSuccess(child.id, child.task, output if parse is None else parse(output))
