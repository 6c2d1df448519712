"""A websocket after its handshake: frames in and out, owned by a connection; nothing waits for it.

It takes the place of uvicorn's protocol at the transport, so that an idle socket is little more
than a few slots: no task, no queue, and a parser only while part of a frame has come. Frames that
the owner makes go to the kernel as they are, the same bytes for many sockets.

A transport that is closed waits until what it holds has been taken. A peer that takes nothing, or
is gone without a word, would keep the connection, its buffers and its descriptor until the kernel
gives up, a quarter of an hour later. And one that floods would have each of its frames parsed until
it has noticed that it was closed. So every end has a time, and may be deaf.
"""

import asyncio
import logging
import os
from collections.abc import MutableSet
from dataclasses import dataclass
from typing import Final, Protocol, cast

from websockets.exceptions import ProtocolError
from websockets.frames import CloseCode as Code
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, State
from websockets.protocol import Protocol as Parser

from runwire.wire import CloseCode
from runwire_realtime.line import NOWHERE

# For the peer to take what it was given before, also when it comes back from a pause.
CLOSE_SECONDS: Final = 10.0
# For a close frame to leave, and its answer to come, on a slow link.
FAREWELL_SECONDS: Final = 5.0
# A close frame has room for 123 bytes.
MAX_REASON: Final = 100
_MASK: Final = 4
# Pings of a peer are answered behind what it has not taken yet, if that is less.
_ANSWERED_BYTES: Final = 64 * 1024
_DATA: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})
# Debugging output of each frame would make the parser ask for each.
_LOGGER: Final = logging.getLogger("runwire.socket")


class Owner(Protocol):
    """Whose socket it is."""

    def received(self, message: str | bytes) -> None:
        """Take a message of the peer."""

    def changed(self) -> None:
        """Note that `is_writable` may have changed."""

    def gone(self) -> None:
        """Note that nothing comes or goes any more; called once."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How many beats pass before a ping, and then before a silent peer is given up; 0: none."""

    interval: int
    timeout: int


class OwnedSocket(asyncio.Protocol):
    """One websocket."""

    # One for each connection, and many of them: no dict beside it.
    __slots__ = (
        "_beats",
        "_ending",
        "_farewell",
        "_fragments",
        "_is_deaf",
        "_is_full",
        "_is_over",
        "_is_text",
        "_keepalive",
        "_max_size",
        "_open",
        "_owner",
        "_parser",
        "_ping",
        "_transport",
        "_unparsed",
        "descriptor",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        keepalive: Keepalive,
        max_size: int,
        open_sockets: "MutableSet[OwnedSocket]",
    ) -> None:
        """Take a transport over; it stands among `open_sockets` until it is lost."""
        self._transport = transport
        # What frames are written to, past the transport; NOWHERE: only the transport knows how.
        self.descriptor = _descriptor(transport)
        self._owner: Owner | None = None
        # What was given has not been taken yet: the transport holds some of it.
        self._is_full = False
        # A close frame was sent, is to be sent, or came.
        self._is_over = False
        # It was closed for sending too much: what still comes is not looked at.
        self._is_deaf = False
        # The close frame, while it waits for what is before it.
        self._farewell = b""
        self._ending: asyncio.TimerHandle | None = None
        self._max_size = max_size
        self._parser: Parser | None = None
        # Bytes in the parser of frames that are not complete.
        self._unparsed = 0
        self._fragments: bytearray | None = None
        self._is_text = False
        # Since the last ping, or since its answer came; and what the answer has to hold.
        self._beats = 0
        self._ping: bytes | None = None
        self._keepalive = keepalive
        self._open = open_sockets
        open_sockets.add(self)
        transport.set_protocol(self)
        # From the first byte that it holds until the last has been taken, it is full.
        transport.set_write_buffer_limits(high=0)

    # For its owner

    def give_to(self, owner: Owner) -> None:
        """Say whose it is, before anything can have come."""
        self._owner = owner

    @property
    def is_writable(self) -> bool:
        """Whether a frame may be written: the last one was taken, and none has closed it."""
        return not (self._is_full or self._is_over or self._transport.is_closing())

    def write_frame(self, frame: bytes) -> None:
        """Bring a frame to the peer.

        The kernel gets it at once, which is all that is done for nearly every one of thousands; the
        transport gets what the kernel does not take, what comes behind that, and every fault.
        """
        try:
            taken = 0 if self._is_full else os.write(self.descriptor, frame)
        except OSError:
            taken = 0
        if taken < len(frame):
            self._transport.write(frame[taken:])

    def pause_reading(self) -> None:
        """Take nothing more from the peer for now."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what the peer sends."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame once what was given before was taken; end after a while in any case.

        The owner is told when it has left, or cannot.
        """
        if self._is_over:
            return
        self._is_over = True
        self._is_deaf = code == CloseCode.RATE_LIMITED
        parser = self._parser = self._parser or self._new_parser()
        parser.send_close(code, reason[:MAX_REASON])
        self._farewell = b"".join(parser.data_to_send())
        if self._is_full:
            self._end_in(CLOSE_SECONDS)
        else:
            self._say_farewell()

    def beat(self) -> None:
        """Ask from time to time whether the peer is there; end it if it does not answer.

        In beats of whoever calls, so that a loop that was held up does not blame the sockets.
        """
        self._beats += 1
        if self._ping is None:
            if self._keepalive.interval and self._beats >= self._keepalive.interval:
                self._send_ping()
        elif self._keepalive.timeout and self._beats >= self._keepalive.timeout:
            self._fail(Code.INTERNAL_ERROR, "keepalive ping timeout")
            self._transport.abort()

    def _send_ping(self) -> None:
        if not self.is_writable:
            return  # a peer that takes nothing is another's affair
        self._beats = 0
        self._ping = os.urandom(4)
        self.write_frame(Frame(Opcode.PING, self._ping).serialize(mask=False))

    # For the transport

    def pause_writing(self) -> None:
        self._is_full = True
        self._tell()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._farewell:
            self._say_farewell()
        else:
            self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        # Its number will be another socket's.
        self.descriptor = NOWHERE
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        self._drop_parser()
        self._open.discard(self)
        self._part()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        parser = self._parser = self._parser or self._new_parser()
        self._unparsed += len(data)
        parser.receive_data(data)
        frames = cast(list[Frame], parser.events_received())
        self._answer(b"".join(parser.data_to_send()))
        if parser.parser_exc is not None:
            # What came was no websocket.
            self._finish()
            return
        for frame in frames:
            self._unparsed -= _size_of(frame)
            self._take(frame)
        if self._unparsed == 0 and self._fragments is None and not self._is_over:
            self._drop_parser()

    # For the server

    def shutdown(self) -> None:
        """Close it: the server stops."""
        if not self._is_over:
            self._fail(Code.SERVICE_RESTART, "")
        self._finish()

    # Frames of the peer

    def _take(self, frame: Frame) -> None:
        if frame.opcode in _DATA:
            self._data(frame)
        elif frame.opcode is Opcode.PONG and bytes(frame.data) == self._ping:
            self._ping, self._beats = None, 0
        elif frame.opcode is Opcode.CLOSE:
            # The parser has answered it, if it is not an answer itself.
            self._finish()

    def _data(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
            self._fragments = bytearray()
        assert self._fragments is not None  # the parser knows that a message has begun
        self._fragments += frame.data
        if not frame.fin:
            return
        message, self._fragments = bytes(self._fragments), None
        if self._is_over or self._owner is None:
            return  # what comes now is not looked at any more
        if not self._is_text:
            self._owner.received(message)
            return
        try:
            text = message.decode()
        except UnicodeDecodeError:
            self._fail(Code.INVALID_DATA, "")
            self._finish()
            return
        self._owner.received(text)

    def _answer(self, frames: bytes) -> None:
        """Write what the parser says. A peer that takes nothing gets no pongs either."""
        if frames and self._transport.get_write_buffer_size() < _ANSWERED_BYTES:
            self._transport.write(frames)

    def _new_parser(self) -> Parser:
        return Parser(SERVER, max_size=self._max_size, logger=_LOGGER)

    def _drop_parser(self) -> None:
        parser, self._parser = self._parser, None
        if parser is not None:
            # It and its parser hold each other: freed at once, not when the collector comes.
            parser.parser.close()

    # Its end

    def _fail(self, code: int, reason: str) -> None:
        """Send a close frame, past everything; nothing is written afterwards."""
        self._is_over = True
        parser = self._parser = self._parser or self._new_parser()
        if parser.state is State.OPEN:
            try:
                parser.send_close(code, reason)
            except ProtocolError:
                return
            self._transport.write(b"".join(parser.data_to_send()))
        self._part()

    def _finish(self) -> None:
        """Close the transport once what it holds was taken, or after a while."""
        self._is_over = True
        self._transport.close()
        self._end_in(FAREWELL_SECONDS)
        self._part()

    def _say_farewell(self) -> None:
        farewell, self._farewell = self._farewell, b""
        self._transport.write(farewell)
        # Its answer is to be heard.
        self.resume_reading()
        self._end_in(FAREWELL_SECONDS)
        self._part()

    def _end_in(self, seconds: float) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def _tell(self) -> None:
        if self._owner is not None:
            self._owner.changed()

    def _part(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.gone()


def _descriptor(transport: asyncio.Transport) -> int:
    """Return where the bytes of a transport go as they are, if they do."""
    socket = transport.get_extra_info("socket")
    if os.name != "posix" or socket is None or transport.get_extra_info("sslcontext") is not None:
        return NOWHERE
    return int(socket.fileno())


def _size_of(frame: Frame) -> int:
    """Return how many bytes a frame of a client takes at least."""
    size = len(frame.data)
    return 2 + (0 if size < 126 else 2 if size < 65_536 else 8) + _MASK + size
