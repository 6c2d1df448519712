"""Which keys streams have, and which of them are Runwire's own. [core]

Keys that begin with `$` are reserved: `$log` holds the log of a run, `$input:<key>` what was sent
to its input stream of that key. They are streams like any other, but "*" does not stand for them,
the run does not list them, and applications do not append to them.
"""

import re
from typing import Final

from runwire.errors import InvalidValueError

MAX_STREAM_KEY: Final = 128
RESERVED: Final = "$"
LOG_KEY: Final = "$log"
INPUT_PREFIX: Final = "$input:"
MAX_INPUT_KEY: Final = MAX_STREAM_KEY - len(INPUT_PREFIX)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def is_reserved(key: str) -> bool:
    """Say whether a key is one of Runwire's own."""
    return key.startswith(RESERVED)


def refusal_of(key: str, *, reserved: bool = False) -> InvalidValueError | None:
    """Return why no stream can have this key, if so; `reserved`: Runwire itself writes."""
    if not 1 <= len(key) <= MAX_STREAM_KEY or _CONTROL.search(key):
        return InvalidValueError(
            f"a stream key is 1 to {MAX_STREAM_KEY} characters, none of them control characters",
            code="key",
        )
    if is_reserved(key) and not reserved:
        return InvalidValueError(
            f"stream key {key!r} begins with {RESERVED!r}, which is reserved: logs are written with"
            " `logger`, input is sent with `streams.input(…).send`",
            code="key",
        )
    return None


def input_key(key: str) -> str:
    """Return where input of this key is stored. Raises InvalidValueError for a key that is none."""
    if not 1 <= len(key) <= MAX_INPUT_KEY or _CONTROL.search(key) or is_reserved(key):
        raise InvalidValueError(
            f"the key of an input stream is 1 to {MAX_INPUT_KEY} characters, none of them control"
            f" characters, and does not begin with {RESERVED!r}",
            code="key",
        )
    return INPUT_PREFIX + key
