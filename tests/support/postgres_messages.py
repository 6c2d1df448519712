"""Reads Postgres' protocol along, just enough to see a COMMIT go and its answer come.

Fed with the bytes of one direction of one connection, in pieces of any size.
"""

import re
from typing import Final

# A procedure commits by itself: its CALL stands for a COMMIT. So does a statement that writes
# history and is a transaction of its own.
_COMMIT: Final = re.compile(rb"^(\s|--[^\n]*\n)*(commit|end|call)\b", re.IGNORECASE)
_BEGIN: Final = re.compile(rb"^(\s|--[^\n]*\n)*(begin|start)\b", re.IGNORECASE)
_ROLLBACK: Final = re.compile(rb"^(\s|--[^\n]*\n)*(rollback|abort)\b", re.IGNORECASE)
_WRITES: Final = re.compile(rb"\binsert into runwire\.run_events\b", re.IGNORECASE)
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
        # How many writing statements were transactions of their own, so far.
        self.lone_writes = 0
        self._is_in_transaction = False
        # The texts of prepared statements and of portals.
        self._statements: dict[bytes, bytes] = {}
        self._portals: dict[bytes, bytes] = {}

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
        match kind:
            case b"Q":
                return self._executes(body)
            case b"P":
                name, text, _ = body.split(b"\0", 2)
                self._statements[name] = text
            case b"B":
                portal, statement, _ = body.split(b"\0", 2)
                self._portals[portal] = self._statements.get(statement, b"")
            case b"E":
                return self._executes(self._portals.get(body.split(b"\0", 1)[0], b""))
            case _:
                pass
        return False

    def _executes(self, text: bytes) -> bool:
        """Note what a statement does to the transaction; say whether it commits."""
        if _BEGIN.match(text):
            self._is_in_transaction = True
        elif _ROLLBACK.match(text):
            self._is_in_transaction = False
        elif _COMMIT.match(text):
            self._is_in_transaction = False
            return True
        elif not self._is_in_transaction and _WRITES.search(text):
            self.lone_writes += 1
            return True
        return False


class BackendReader:
    """What a server says: bare bytes for refused encryption, then typed messages."""

    def __init__(self) -> None:
        self.buffer = b""
        # How many bare bytes the client's requests ask for in all.
        self.bare_bytes = 0
        self._bare_seen = 0
        # How many writing statements without a COMMIT the client has sent in all.
        self.lone_writes = 0
        self._lone_seen = 0

    def commits_in(self, data: bytes) -> int:
        """Take more bytes and return how many COMMITs they confirm."""
        self.buffer += data
        while self._bare_seen < self.bare_bytes and self.buffer:
            self.buffer = self.buffer[1:]
            self._bare_seen += 1
        found = 0
        while (message := _take_message(self)) is not None:
            found += self._confirms(*message)
        return found

    def _confirms(self, kind: bytes, body: bytes) -> bool:
        if kind == b"C":
            return body in _COMMITTED
        if kind != b"Z":
            return False
        # A statement that is a transaction commits before the server says that it is idle.
        is_lone = self._lone_seen < self.lone_writes
        self._lone_seen = self.lone_writes
        return is_lone


def _take_message(reader: FrontendReader | BackendReader) -> tuple[bytes, bytes] | None:
    buffer = reader.buffer
    if len(buffer) < 5:
        return None
    end = 1 + int.from_bytes(buffer[1:5], "big")
    if len(buffer) < end:
        return None
    reader.buffer = buffer[end:]
    return buffer[:1], buffer[5:end]
