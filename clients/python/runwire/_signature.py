"""What a task function takes and returns, read from its signature."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, get_type_hints

from runwire._schema import OutputSchema, PayloadSchema
from runwire.errors import TaskError

# What a task function may name after its payload.
OFFERED: Final = ("ctx", "init", "signal")


class Signal(Protocol):
    """Tells a task that it was asked to stop: for `def` tasks, which cannot be interrupted."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run shall stop, or for so many seconds; say whether it shall."""
        ...

    def raise_if_set(self) -> None:
        """Leave the task at this point when the run shall stop."""
        ...


@dataclass(frozen=True)
class Signature:
    """A task function as its task sees it."""

    # What the function names, in the order of OFFERED, with "payload" first if it takes one.
    parameters: tuple[str, ...]
    payload: PayloadSchema | None
    output: OutputSchema

    @classmethod
    def of(cls, function: Callable[..., object], task: str, schema: object = None) -> "Signature":
        """Read what a task function takes. Raises TaskError when it asks for what there is not.

        The payload is what the schema says; without one, what the function's annotation says.
        """
        name = getattr(function, "__qualname__", repr(function))
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TaskError(
                f"{name} is a generator; a task returns its output, streams.pipe yields"
            )
        given = list(inspect.signature(function).parameters.values())
        first = given[0] if given and given[0].name not in OFFERED else None
        named = [parameter.name for parameter in given if parameter is not first]
        unknown = [parameter for parameter in named if parameter not in OFFERED]
        if unknown or (first is not None and first.kind is not first.POSITIONAL_OR_KEYWORD):
            raise TaskError(
                f"{name} takes {', '.join(unknown) or str(first)}; a task takes its payload first, "
                f"then any of {', '.join(OFFERED)} by name"
            )
        if schema is not None and first is None:
            raise TaskError(f"{name} takes no payload, so that its schema says nothing")
        hints = _hints(function, name)
        taken = () if first is None else ("payload",)
        return cls(
            parameters=taken + tuple(offer for offer in OFFERED if offer in named),
            payload=None if first is None else _payload(first, hints, task, name, schema),
            output=OutputSchema.of(hints.get("return", Any), task, name),
        )


def _payload(
    parameter: inspect.Parameter, hints: dict[str, Any], task: str, name: str, schema: object
) -> PayloadSchema:
    if schema is not None:
        return PayloadSchema.given(schema, task, default=parameter.default)
    annotation = hints.get(parameter.name, Any)
    return PayloadSchema.annotated(annotation, task, name, default=parameter.default)


def _hints(function: Callable[..., object], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TaskError(
            f"an annotation of {name} cannot be read: {error}; define its type at module level, "
            "outside of `if TYPE_CHECKING`"
        ) from error
