"""What does not fit a schema, in one line: where and what, never the value. [core]"""

import re
from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_AT_MOST: Final = 5
# A peer may send thousands of problems, at places that it names itself.
_CONSIDERED: Final = 100
_LONGEST_PLACE: Final = 80
# How pydantic names the forms of a union in a place, where nobody asked for names.
_FORM: Final = re.compile(
    r"(str|int|float|bool|constrained-\w+|(list|tuple|dict|function-\w+)\[.*)"
)


def first_problem(error: ValidationError, *, at: str = "") -> str:
    """Return the first problem, and how many more there are; `at`: where, for all of it."""
    return _told(error, 1, at)


def problems(error: ValidationError) -> str:
    """Return the first few problems, and how many more there are."""
    return _told(error, _AT_MOST, "")


def _told(error: ValidationError, at_most: int, at: str) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    meant = _meant(found[:_CONSIDERED])
    lines = [f"{place or at}: {text}" if place or at else text for place, text in meant[:at_most]]
    more = len(meant) - len(lines) + max(0, len(found) - _CONSIDERED)
    return "; ".join(lines) + (f" (and {more} more)" if more else "")


def _meant(found: Sequence[ErrorDetails]) -> list[tuple[str, str]]:
    """Return places and problems; of a union only those of the form that was meant.

    A list that is too long is no string either: who sent a list is not to be told that.
    """
    told = [(_place(each["loc"]), each["msg"], each["type"].endswith("_type")) for each in found]
    meant: dict[str, str] = {}
    for place, text, is_type in told:
        if not (is_type and any(_says_more(other, place) for other in told)):
            # Of forms that all do not fit, the first speaks for all.
            meant.setdefault(place, text)
    return list(meant.items())


def _says_more(other: tuple[str, str, bool], place: str) -> bool:
    """Say whether another problem is of a form whose type fits what is at a place."""
    at, _, is_type = other
    if at == place:
        return not is_type
    return at.startswith(f"{place}." if place else "")


def _place(parts: Sequence[int | str]) -> str:
    named = [str(part) for at, part in enumerate(parts) if not (at and _FORM.fullmatch(str(part)))]
    return ".".join(named)[:_LONGEST_PLACE]
