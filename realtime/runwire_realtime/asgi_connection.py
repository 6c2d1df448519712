"""A connection over plain ASGI: whatever server is below us sends, and we wait for it.

There is one writer for each connection and nobody else sends. The event stream is always carried
so, the websocket wherever the server does not hand out its socket.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import anyio
from anyio.abc import TaskGroup

from runwire.wire import CloseCode, Subscribe
from runwire_realtime.connection import TICK, Authenticate, Closing, Connection, Receive
from runwire_realtime.feed_loading import FeedLoading
from runwire_realtime.frames import Frame, Frames
from runwire_realtime.hub import Hub
from runwire_realtime.subscriber import Phase

Send: TypeAlias = Callable[[Frame], Awaitable[None]]


class AsgiConnection(Connection):
    """Writes with `send`, one frame after the other."""

    def __init__(
        self,
        hub: Hub,
        frames: Frames,
        loading: FeedLoading,
        authenticate: Authenticate,
        *,
        is_browser: bool = False,
    ) -> None:
        # Of asyncio, as it is cleared and used again with every frame.
        self._woken = asyncio.Event()
        super().__init__(hub, frames, loading, authenticate, is_browser=is_browser)
        # For how many ticks a frame has been being sent; None: none is. Counted in ticks, so that a
        # loop that was held up does not blame the sockets.
        self._ticks_sending: int | None = None
        self._tasks: TaskGroup | None = None

    async def serve(
        self,
        receive: Receive,
        send: Send,
        *,
        token: str | None = None,
        subscribe: Sequence[Subscribe] = (),
        ends_when_done: bool = False,
    ) -> Closing | None:
        """Serve to the end. Return why it is to be closed; None: the client is gone.

        `token` and `subscribe` are what came with the request. `ends_when_done`: end, without a
        code to speak of, once there are no subscriptions.
        """
        closing: Closing | None = None
        is_gone = False
        try:
            async with anyio.create_task_group() as self._tasks:
                if token is not None:
                    await self.authenticate(token)
                # The credential may have ended since the request was answered.
                for message in subscribe if self.subscriber.phase is Phase.READY else ():
                    self.subscriber.subscribe(message, time.monotonic())
                self._tasks.start_soon(self._read, receive)
                closing = await self._write(send, ends_when_done=ends_when_done)
                self._tasks.cancel_scope.cancel()
        except* OSError:
            is_gone = True
        finally:
            self._closed()
        return None if is_gone else closing or self.outbox.closing

    def wake(self) -> None:
        self._woken.set()

    def cut_off(self, code: int, reason: str) -> None:
        self.outbox.close(code, reason)
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def tick(self, now: float) -> None:
        if now >= self._due_at:
            self.wake()
        if self._ticks_sending is not None:
            self._ticks_sending += 1
            if (self._ticks_sending - 1) * TICK >= self._limits.send_seconds:
                self.cut_off(CloseCode.SLOW, "the socket does not drain")

    async def _read(self, receive: Receive) -> None:
        assert self._tasks is not None
        while True:
            frame = await receive()
            if frame is None:
                self._tasks.cancel_scope.cancel()
                return
            token = self.subscriber.receive(frame, time.monotonic())
            if token is not None:
                await self.authenticate(token)
            # One message a turn: a burst of one client is not everybody's.
            await asyncio.sleep(0)

    async def _write(self, send: Send, *, ends_when_done: bool) -> Closing:
        while True:
            self._woken.clear()
            now = time.monotonic()
            messages = self._next_frame(now)
            if messages:
                self._ticks_sending = 0
                await send(self._frames.frame(messages))
                self._ticks_sending = None
                self._wrote(now)
                # One frame a turn: what comes in meanwhile leaves with the next.
                await asyncio.sleep(0)
            elif self.outbox.closing is not None:
                return self.outbox.closing
            elif ends_when_done and self.subscriptions == 0:
                return CloseCode.GOING_AWAY, ""
            else:
                await self._woken.wait()
