"""Reads Postgres' protocol along, just enough to see a COMMIT go and its answer come.

Fed with the bytes of one direction of one connection, in pieces of any size.
"""

import re
from typing import Final

# A procedure commits by itself: its CALL stands for a COMMIT.
_COMMIT: Final = re.compile(rb"^(\s|--[^\n]*\n)*(commit|end|call)\b", re.IGNORECASE)
_COMMITTED: Final = frozenset({b"COMMIT\0", b"CALL\0"})
_SSL_REQUEST: Final = 80877103
_GSS_REQUEST: Final = 80877104


class FrontendReader:
    """What a client says: an untyped start, then typed messages."""

    def __init__(self) -> None:
        self.buffer = b""
        self._has_started = False
        # How many requests (SSL, GSS) are answered by one bare byte, so far.
        self.bare_answers = 0
        # Which prepared statements and which portals are COMMITs.
        self._statements: set[bytes] = set()
        self._portals: set[bytes] = set()

    def commits_in(self, data: bytes) -> int:
        """Take more bytes and return how many COMMITs were completed by them."""
        self.buffer += data
        found = 0
        while True:
            if not self._has_started:
                if not self._take_start():
                    return found
                continue
            message = _take_message(self)
            if message is None:
                return found
            found += self._is_commit(*message)

    def _take_start(self) -> bool:
        if len(self.buffer) < 8:
            return False
        length = int.from_bytes(self.buffer[:4], "big")
        if len(self.buffer) < length:
            return False
        code = int.from_bytes(self.buffer[4:8], "big")
        self.buffer = self.buffer[length:]
        if code in (_SSL_REQUEST, _GSS_REQUEST):
            self.bare_answers += 1
        else:
            self._has_started = True
        return True

    def _is_commit(self, kind: bytes, body: bytes) -> bool:
        if kind == b"Q":
            return bool(_COMMIT.match(body))
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            _note(self._statements, name, bool(_COMMIT.match(text)))
        elif kind == b"B":
            portal, statement, _ = body.split(b"\0", 2)
            _note(self._portals, portal, statement in self._statements)
        elif kind == b"E":
            return body.split(b"\0", 1)[0] in self._portals
        return False


class BackendReader:
    """What a server says: bare bytes for refused encryption, then typed messages."""

    def __init__(self) -> None:
        self.buffer = b""
        # How many bare bytes the client's requests ask for in all.
        self.bare_bytes = 0
        self._bare_seen = 0

    def commits_in(self, data: bytes) -> int:
        """Take more bytes and return how many COMMITs they confirm."""
        self.buffer += data
        while self._bare_seen < self.bare_bytes and self.buffer:
            self.buffer = self.buffer[1:]
            self._bare_seen += 1
        found = 0
        while (message := _take_message(self)) is not None:
            found += message[0] == b"C" and message[1] in _COMMITTED
        return found


def _take_message(reader: FrontendReader | BackendReader) -> tuple[bytes, bytes] | None:
    buffer = reader.buffer
    if len(buffer) < 5:
        return None
    end = 1 + int.from_bytes(buffer[1:5], "big")
    if len(buffer) < end:
        return None
    reader.buffer = buffer[end:]
    return buffer[:1], buffer[5:end]


def _note(names: set[bytes], name: bytes, is_commit: bool) -> None:
    if is_commit:
        names.add(name)
    else:
        names.discard(name)
