"""An error as one line for the person at the terminal."""

from collections.abc import Iterator
from typing import cast

import httpx
from pydantic import ValidationError

from runwire.errors import RunwireError
from runwire_engine.errors import EngineError
from runwire_realtime.errors import RealtimeError
from runwire_realtime.logs import redact

_FORESEEN = (RunwireError, EngineError, RealtimeError, ValidationError, httpx.HTTPError, OSError)


def one_line(error: BaseException) -> str | None:
    """Return what to tell about a foreseen error, also out of groups; None for a bug of ours."""
    leaves = list(_leaves(error))
    if not all(isinstance(leaf, _FORESEEN) for leaf in leaves):
        return None
    return redact(_line(leaves[0]))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast(BaseExceptionGroup[BaseException], error).exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            _setting(problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()
        )
    return " ".join(str(error).split()) or type(error).__name__


def _setting(place: tuple[int | str, ...], kind: str, message: str) -> str:
    name = "RUNWIRE_" + "_".join(str(part) for part in place).upper()
    # Empty is as good as absent, also where a text must not be empty.
    if kind in {"missing", "string_too_short"}:
        return f"{name} is not set"
    return f"{name}: {message.removeprefix('Value error, ')}"
