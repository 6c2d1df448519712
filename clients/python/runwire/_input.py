"""What is sent into a run while it executes: a queue for each key, read in the order of sending.

Each attempt reads from the beginning: what was sent before it began waits for it, and an attempt
that is tried again gets the same values again. What `once` or a handler took is taken for the
attempt: the next call gets what comes after it.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, Literal, NoReturn, TypeAlias, TypeVar, cast
from weakref import WeakKeyDictionary

import orjson

from runwire import _context
from runwire._pipe import look_at
from runwire._stream import Typed
from runwire._stream_keys import input_key
from runwire.durations import Duration, seconds
from runwire.errors import InvalidValueError
from runwire.wait import LONGEST

T = TypeVar("T")

logger: Final = logging.getLogger("runwire.task")


@dataclass(frozen=True)
class InputReceived(Generic[T]):
    """A wait for input that was answered."""

    output: T
    ok: Literal[True] = True
    error: None = None

    def unwrap(self) -> T:
        """Return the value."""
        return self.output


@dataclass(frozen=True)
class InputTimedOut:
    """A wait for input that nothing came for in time."""

    error: TimeoutError
    ok: Literal[False] = False
    output: None = None

    def unwrap(self) -> NoReturn:
        """Raise TimeoutError."""
        raise self.error


InputResult: TypeAlias = InputReceived[T] | InputTimedOut


class Input(Typed[T]):
    """An input stream of values of one type: sent from outside, read by the run.

    Values are validated when they are sent and when they are read: InvalidValueError, code
    "chunk_invalid". Reading raises NotInRunError outside of a run.
    """

    def __init__(self, id: str, type: type[T] | None = None) -> None:
        input_key(id)
        super().__init__(id, type)

    @property
    def sync(self) -> "SyncInput[T]":
        """The blocking twins, for `def` tasks and scripts."""
        return SyncInput(self)

    async def send(self, run_id: str, value: T) -> None:
        """Send a value to a run, which need not have begun; at most 1 MiB of JSON.

        Raises FencedError when the run is over.
        """
        from runwire import streams

        await streams.default_streams.send(run_id, self, value)

    async def once(self, *, timeout: Duration | None = None) -> T:
        """Return the next value, waiting for it. Raises TimeoutError.

        The run keeps its slot while it waits; for what may take long there is `wait`.
        """
        runtime = _context.require("once of an input stream")
        body = await runtime.input_take(self.id, _span(timeout))
        return self._taken(body, timeout)

    async def wait(self, *, timeout: Duration | None = None) -> "InputResult[T]":
        """Wait for the next value, however long: the run is WAITING meanwhile, its slot free.

        Return an `InputReceived`, or an `InputTimedOut` once `timeout` (at most 366 days) has
        passed; `unwrap()` returns the value or raises TimeoutError. As each wait it is not waited
        for again when the code is replayed elsewhere.
        """
        return await self.wait_with_idle_timeout(idle_timeout=0, timeout=timeout)

    async def wait_with_idle_timeout(
        self, *, idle_timeout: Duration, timeout: Duration | None = None
    ) -> "InputResult[T]":
        """As `wait`, but keep the slot for so long first: a value that comes soon finds it warm."""
        runtime = _context.require("wait of an input stream")
        body = await runtime.input_wait(self.id, wait_span(timeout), seconds(idle_timeout))
        return self.result(body, timeout)

    def result(self, body: str | None, timeout: Duration | None) -> "InputResult[T]":
        """Return what a wait came to."""
        if body is None:
            return InputTimedOut(TimeoutError(f"nothing was sent to {self.id!r} within {timeout}"))
        return InputReceived(self.parse(orjson.loads(body)))

    async def peek(self) -> T | None:
        """Return the next value if there is one, and leave it for who takes it; else None."""
        body = await _context.require("peek of an input stream").input_peek(self.id)
        return None if body is None else self.parse(orjson.loads(body))

    def on(self, handler: Callable[[T], Awaitable[object] | object]) -> Callable[[], None]:
        """Call a function, sync or async, with each value from now on; return what ends that.

        Values are handed out one by one, in order, and to every handler of the key. What a handler
        raises is in the run's log; the next value comes nevertheless. It ends with the attempt.
        """
        runtime = _context.require("on of an input stream")
        keys = _handling.setdefault(runtime, {})
        handlers = keys.get(self.id)
        if handlers is None or not handlers.is_open:
            handlers = keys[self.id] = _Handlers(runtime, self.id)
        return handlers.add(lambda body: handler(self.parse(orjson.loads(body))))

    def _taken(self, body: str | None, timeout: Duration | None) -> T:
        if body is None:
            raise TimeoutError(f"nothing was sent to {self.id!r} within {timeout}")
        return self.parse(orjson.loads(body))


class SyncInput(Generic[T]):
    """The blocking twins of an input stream's calls; handlers need an event loop."""

    def __init__(self, stream: Input[T]) -> None:
        self._stream = stream

    def send(self, run_id: str, value: T) -> None:
        """Send a value to a run, as `Input.send` does."""
        from runwire import streams

        streams.sync.send(run_id, self._stream, value)

    def once(self, *, timeout: Duration | None = None) -> T:
        """Return the next value, as `Input.once` does."""
        runtime = _context.require("once of an input stream")
        body = runtime.input_take_blocking(self._stream.id, _span(timeout))
        return self._stream._taken(body, timeout)  # pyright: ignore[reportPrivateUsage]

    def wait(self, *, timeout: Duration | None = None) -> "InputResult[T]":
        """Wait for the next value with the slot free, as `Input.wait` does."""
        return self.wait_with_idle_timeout(idle_timeout=0, timeout=timeout)

    def wait_with_idle_timeout(
        self, *, idle_timeout: Duration, timeout: Duration | None = None
    ) -> "InputResult[T]":
        """As `wait`, but keep the slot for so long first."""
        runtime = _context.require("wait of an input stream")
        stream = self._stream
        body = runtime.input_wait_blocking(stream.id, wait_span(timeout), seconds(idle_timeout))
        return stream.result(body, timeout)

    def peek(self) -> T | None:
        """Return the next value if there is one, as `Input.peek` does."""
        body = _context.require("peek of an input stream").input_peek_blocking(self._stream.id)
        return None if body is None else self._stream.parse(orjson.loads(body))


class _Handlers:
    """The handlers of one key in one attempt, and the task that feeds them.

    To the attempt it is like a pipe that is over as soon as the function is.
    """

    def __init__(self, runtime: _context.Runtime, key: str) -> None:
        self._runtime = runtime
        self._key = key
        self._calls: list[Callable[[str], Awaitable[object] | object]] = []
        self._task = asyncio.get_running_loop().create_task(self._feed())
        self._task.add_done_callback(look_at)
        runtime.opened(self)

    def add(self, call: Callable[[str], Awaitable[object] | object]) -> Callable[[], None]:
        self._calls.append(call)

        def off() -> None:
            if call in self._calls:
                self._calls.remove(call)
            if not self._calls:
                self.abort()

        return off

    async def _feed(self) -> None:
        while (body := await self._runtime.input_take(self._key, None)) is not None:
            for call in tuple(self._calls):
                await self._hand_to(call, body)

    async def _hand_to(self, call: Callable[[str], Awaitable[object] | object], body: str) -> None:
        try:
            answer = call(body)
            if inspect.isawaitable(answer):
                await cast(Awaitable[object], answer)
        except Exception as error:
            said = f"a handler of input {self._key!r} failed: {type(error).__name__}: {error}"
            self._runtime.log("error", said)
            logger.exception("a handler of input %r failed", self._key)

    @property
    def is_open(self) -> bool:
        return not self._task.done() and not self._task.cancelling()

    async def finish(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._task.cancel()


_handling: WeakKeyDictionary[_context.Runtime, dict[str, _Handlers]] = WeakKeyDictionary()


def wait_span(timeout: Duration | None) -> float | None:
    """Return a timeout in seconds. Raises InvalidValueError beyond what a wait may last."""
    span = _span(timeout)
    if span is not None and not 0 <= span <= LONGEST:
        raise InvalidValueError("a wait lasts 0 seconds to 366 days", code="duration")
    return span


def _span(timeout: Duration | None) -> float | None:
    return None if timeout is None else seconds(timeout)
