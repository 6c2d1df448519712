"""One open connection to the server, whatever carries it."""

from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

import orjson

from runwire.wire import FRAME_TOO_LARGE, CloseCode, JsonObject

ABNORMAL: Final = 1006  # it ended without a word

# What an HTTP status that refuses a request means. One that names no reason to stay away passes.
_CODE_OF_STATUS: Final[dict[int, int]] = {
    401: CloseCode.INVALID_TOKEN,
    403: CloseCode.FORBIDDEN,
    404: CloseCode.NOT_FOUND,
    408: ABNORMAL,
    413: FRAME_TOO_LARGE,
    425: ABNORMAL,
    429: CloseCode.OVERLOADED,
    503: CloseCode.OVERLOADED,
}
_REFUSED: Final = range(400, 500)


class LostError(Exception):
    """The connection is gone, or was refused; `code` says so as wire.CloseCode does."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Link(Protocol):
    """Carries messages: `_websocket` and `_event_link`."""

    async def send(self, messages: Sequence[JsonObject]) -> None:
        """Send what one turn has to say. A link that is gone takes it and says nothing: `receive`
        does."""
        ...

    async def receive(self) -> list[JsonObject]:
        """Return the messages of the next frame; canceled, it loses none. Raises LostError."""
        ...

    async def close(self) -> None: ...


def code_of_status(status: int) -> int:
    """Return the close code that says what an HTTP status does."""
    return _CODE_OF_STATUS.get(status, CloseCode.MALFORMED if status in _REFUSED else ABNORMAL)


def messages_of(frame: str | bytes) -> list[JsonObject]:
    """Return the messages of a frame; a frame that is none counts as a broken promise."""
    try:
        messages: Any = orjson.loads(frame)
    except orjson.JSONDecodeError:
        return [{}]
    return cast(list[JsonObject], messages) if isinstance(messages, list) else [{}]
