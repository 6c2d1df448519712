"""How an id is spelled, and what it tells: the millisecond it was made, then chance. [core]"""

from datetime import UTC, date, datetime
from typing import Final

RANDOM_BITS: Final = 80
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"
_TIME_CHARACTERS: Final = 9  # 45 bits of milliseconds: enough until the year 3084
_RANDOM_CHARACTERS: Final = RANDOM_BITS // 5


def spelled(milliseconds: int, random: int) -> str:
    """Return the characters of an id after its prefix."""
    return _base32(milliseconds, _TIME_CHARACTERS) + _base32(random, _RANDOM_CHARACTERS)


def day_of(id: str) -> date | None:
    """Return the UTC day an id was made on; None for a text that is none of our ids."""
    _, _, digits = id.partition("_")
    if len(digits) != _TIME_CHARACTERS + _RANDOM_CHARACTERS or not set(digits) <= set(_DIGITS):
        return None
    milliseconds = int(digits[:_TIME_CHARACTERS], 32)
    return datetime.fromtimestamp(milliseconds / 1000, UTC).date()


def _base32(number: int, characters: int) -> str:
    return "".join(_DIGITS[(number >> (5 * place)) & 31] for place in range(characters - 1, -1, -1))
