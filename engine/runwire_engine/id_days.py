"""On which day an id was made. [core]"""

from datetime import UTC, date, datetime
from typing import Final

# An id is a word, "_", the milliseconds it was made at, and what makes it unique.
DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"
TIME_CHARACTERS: Final = 9  # 45 bits of milliseconds: enough until the year 3084
RANDOM_CHARACTERS: Final = 16  # 80 bits
_LAST_MILLISECOND: Final = 253_402_300_799_999  # of the year 9999


def day_of(id: str) -> date | None:
    """Return the UTC day an id was made on; None for a text that is none of our ids."""
    _, _, digits = id.partition("_")
    if len(digits) != TIME_CHARACTERS + RANDOM_CHARACTERS or not set(digits) <= set(DIGITS):
        return None
    milliseconds = int(digits[:TIME_CHARACTERS], 32)
    if milliseconds > _LAST_MILLISECOND:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).date()
