"""A link over a websocket."""

from collections.abc import Sequence
from typing import Final

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from runwire._link import ABNORMAL, LostError, code_of_status, messages_of
from runwire.errors import ConfigurationError
from runwire.wire import MAX_MESSAGE_BYTES, PROTOCOL, SOCKET_PATH, JsonObject

CLOSE_TIMEOUT: Final = 1.0  # seconds
# The longest frame is one message alone; some room for its array and for a newer server.
MAX_FRAME: Final = 2 * MAX_MESSAGE_BYTES
# Statuses that the server itself refuses a websocket with.
_OURS: Final = frozenset({401, 403, 404})


async def open_websocket(api_url: str) -> "WebSocketLink":
    """Open a websocket. Raises LostError, and ConfigurationError for what is no address."""
    try:
        connection = await dial(_address(api_url))
    except InvalidStatus as error:
        status = error.response.status_code
        # Any other status may be that of something in between, which lets no websocket pass.
        code = code_of_status(status) if status in _OURS else ABNORMAL
        raise LostError(code, f"the server refused the websocket with status {status}") from error
    except (InvalidURI, UnicodeError) as error:
        raise ConfigurationError(f"{api_url} is no address") from error
    except (OSError, InvalidHandshake, ConnectionClosed, EOFError) as error:
        raise LostError(ABNORMAL, str(error)) from error
    return WebSocketLink(connection)


def dial(address: str) -> connect:
    """Open a websocket the one way that holds what we promise; await it."""
    return connect(
        address,
        subprotocols=[Subprotocol(PROTOCOL)],
        compression=None,
        open_timeout=None,
        close_timeout=CLOSE_TIMEOUT,
        ping_interval=None,  # `hb` tells both sides
        max_size=MAX_FRAME,
    )


class WebSocketLink:
    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def send(self, messages: Sequence[JsonObject]) -> None:
        try:
            for message in messages:
                await self._connection.send(orjson.dumps(message).decode())
        except ConnectionClosed:
            return  # the reader finds out and says why

    async def receive(self) -> list[JsonObject]:
        try:
            return messages_of(await self._connection.recv())
        except ConnectionClosed as error:
            code, reason = ABNORMAL, ""
            if error.rcvd is not None:
                code, reason = error.rcvd.code, error.rcvd.reason
            raise LostError(code, reason) from error

    async def close(self) -> None:
        await self._connection.close()


def _address(api_url: str) -> str:
    scheme, separator, rest = api_url.partition("://")
    return f"{scheme.replace('http', 'ws', 1)}{separator}{rest}{SOCKET_PATH}"
