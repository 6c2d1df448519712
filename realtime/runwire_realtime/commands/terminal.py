"""Text of others at a terminal: without the control sequences that could rewrite it."""

import re

_ESCAPES = re.compile(r"\x1b\[[0-9;?]{0,32}[ -/]{0,4}[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Return text without escapes and control characters, but for tabs and line ends."""
    return _ESCAPES.sub("", text)
