"""One-time codes by which the person at the terminal signs in to the dashboard.

A code lives in this process only, is good once, for ten minutes. It travels in the fragment of a
link, which browsers do not send, and is exchanged by a same-origin POST.
"""

import re
import secrets
import time
from typing import Final

CODE_LIFETIME: Final = 600.0
_CODE_BYTES: Final = 24
_CODE: Final = re.compile(r"[A-Za-z0-9_-]{32}")
_MAX_CODES: Final = 100  # a person prints a few; the oldest give way


class SignIn:
    """Issues one-time codes and redeems each once."""

    def __init__(self) -> None:
        self._codes: dict[str, float] = {}

    def issue(self) -> str:
        """Return a new code."""
        while len(self._codes) >= _MAX_CODES:
            del self._codes[next(iter(self._codes))]
        code = secrets.token_urlsafe(_CODE_BYTES)
        self._codes[code] = time.monotonic() + CODE_LIFETIME
        return code

    def redeem(self, code: str) -> bool:
        """Use a code up and say whether it was good."""
        return self._codes.pop(code, 0.0) > time.monotonic()


def is_code(text: str) -> bool:
    """Say whether a text can be a code."""
    return _CODE.fullmatch(text) is not None
