"""A link over server-sent events, where websockets do not pass.

One request asks for everything: `auth` keeps the token, the `subscribe` messages of the first turn
are the body, and the response brings the same frames. To ask for something else is to open another
link, from where the subscriptions are by then.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import httpx
import orjson

from runwire._event_stream import EventReader, TooLongError
from runwire._http import Http
from runwire._link import ABNORMAL, LostError, code_of_status, messages_of
from runwire.wire import EVENTS_PATH, CloseCode, JsonObject

# Frames read ahead; beyond it the server waits, as it does for a websocket that is not read.
MAX_FRAMES: Final = 16

_ENDED: Final = "the server ended the response"


class EventLink:
    def __init__(self, http: Http) -> None:
        self._http = http
        self._token = ""
        self._frames: asyncio.Queue[list[JsonObject] | LostError] = asyncio.Queue(MAX_FRAMES)
        # Reads the response. A response whose read is canceled is lost, and whoever waits for a
        # frame may leave at any time.
        self._reading: asyncio.Task[None] | None = None

    async def send(self, messages: Sequence[JsonObject]) -> None:
        asked: list[JsonObject] = []
        for message in messages:
            if message["type"] == "auth":
                self._token = message["token"]
            elif message["type"] == "subscribe":
                asked.append(message)
        if asked and self._reading is None:
            self._reading = asyncio.create_task(self._read(orjson.dumps(asked)))

    async def receive(self) -> list[JsonObject]:
        frame = await self._frames.get()
        if isinstance(frame, LostError):
            raise frame
        return frame

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading

    async def _read(self, body: bytes) -> None:
        try:
            end = await self._follow(body)
        except TooLongError:
            end = LostError(CloseCode.INSUFFICIENT_STATE, "an event was too long")
        except (UnicodeError, httpx.LocalProtocolError):
            end = LostError(CloseCode.INVALID_TOKEN, "the token cannot be sent")
        except Exception as error:
            # Whatever it was: whoever waits for the next frame must hear that none comes.
            end = LostError(ABNORMAL, str(error) or type(error).__name__)
        await self._frames.put(end)

    async def _follow(self, body: bytes) -> LostError:
        headers = {
            "authorization": f"Bearer {self._token}",
            "accept": "text/event-stream",
            "content-type": "application/json",
        }
        async with self._http.stream(EVENTS_PATH, body, headers) as response:
            if not response.is_success:
                return await _refusal(response)
            reader = EventReader()
            async for data in response.aiter_bytes():
                for event in reader.feed(data):
                    await self._frames.put(messages_of(event))
        return LostError(ABNORMAL, _ENDED)


async def _refusal(response: httpx.Response) -> LostError:
    status = response.status_code
    await response.aread()
    try:
        reason = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        reason = f"the server answered {status}"
    return LostError(code_of_status(status), reason)
