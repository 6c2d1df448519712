"""How a hook is called: from the task loop, or from the thread of a `def` task.

On the loop an async hook is awaited and a `def` one called in a thread, so that it blocks nobody.
In a thread a `def` hook is simply called; async ones run on a loop of that attempt's own, which
nobody blocks but the task itself, and which lives as long, so that what `init` opens can be used
later.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from concurrent.futures import Future
from typing import Any, cast

from runwire._hooks import Prepared
from runwire.errors import TaskError
from runwire_engine.bridge import pending_promise
from runwire_engine.threads import Errand, Threads, outside_of_loops

Offered = Mapping[str, object]


class LoopCalls:
    """Calls hooks from the task loop."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._errand: Errand | None = None

    def abandon(self) -> None:
        """Count the thread of a hook no longer: it does not return."""
        if self._errand is not None:
            self._threads.abandon(self._errand)

    async def call(self, hook: Prepared, offered: Offered) -> object:
        """Call a hook and return what it returns."""
        arguments = hook.arguments(offered)
        if hook.is_async:
            return await cast(Awaitable[object], hook.function(**arguments))
        returned = await self._in_thread(lambda: hook.function(**arguments))
        return await returned if inspect.isawaitable(returned) else returned

    async def wrap(
        self, hook: Prepared, offered: Offered, inner: Callable[[], Awaitable[None]]
    ) -> None:
        """Call a middleware, whose `next` is `inner`; definitions see to it that it is async."""
        called, over = False, asyncio.Event()

        async def next() -> None:
            nonlocal called
            _once(hook, called)
            called = True
            try:
                await inner()
            finally:
                over.set()

        try:
            await self.call(hook, {**offered, "next": next})
        finally:
            if called:
                await over.wait()  # it may have been handed to an asyncio task of its own
        _reached(hook, called)

    async def _in_thread(self, work: Callable[[], object]) -> object:
        promise: Future[object] = pending_promise()
        variables = outside_of_loops()

        def run() -> None:
            try:
                promise.set_result(variables.run(work))
            except BaseException as error:
                promise.set_exception(error)

        self._errand = self._threads.submit(run)
        over = asyncio.wrap_future(promise)
        # A thread cannot be interrupted: what comes after must not run beside it.
        interrupted: asyncio.CancelledError | None = None
        while not over.done():
            try:
                await asyncio.wait([over])
            except asyncio.CancelledError as error:
                interrupted = error
        if interrupted is not None:
            over.exception()
            raise interrupted
        return over.result()


class ThreadCalls:
    """Calls hooks in the thread it is in."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    def call(self, hook: Prepared, offered: Offered) -> object:
        """Call a hook and return what it returns."""
        returned = hook.function(**hook.arguments(offered))
        return self._run(_awaited(returned)) if inspect.isawaitable(returned) else returned

    def wrap(self, hook: Prepared, offered: Offered, inner: Callable[[], None]) -> None:
        """Call a middleware, whose `next` is `inner`."""
        called = False

        def enter() -> None:
            nonlocal called
            _once(hook, called)
            called = True
            inner()

        if hook.is_async:
            self._wrap_async(hook, offered, enter)
        else:
            self.call(hook, {**offered, "next": enter})
        _reached(hook, called)

    def _wrap_async(self, hook: Prepared, offered: Offered, enter: Callable[[], None]) -> None:
        """Run a middleware up to its `next`, then what it wraps, with its loop at rest, then on."""
        loop = self._loop()
        entered: list[asyncio.Future[None]] = []
        reached = loop.create_future()

        async def next() -> None:
            over = loop.create_future()
            entered.append(over)
            if not reached.done():
                reached.set_result(None)
            await over

        arguments = hook.arguments({**offered, "next": next})
        whole = loop.create_task(_awaited(hook.function(**arguments)))
        loop.run_until_complete(_either(whole, reached))
        while entered:
            over = entered.pop()
            try:
                enter()
            except BaseException as error:
                over.set_exception(error)
            else:
                over.set_result(None)
            reached = loop.create_future()
            loop.run_until_complete(_either(whole, reached))
        whole.result()

    def close(self) -> None:
        """Cancel what the hooks left running, and close their loop."""
        if self._runner is not None:
            self._runner.close()

    def _run(self, work: Coroutine[Any, Any, object]) -> object:
        return self._loop().run_until_complete(work)

    def _loop(self) -> asyncio.AbstractEventLoop:
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        return self._runner.get_loop()


class OutcomePromise:
    """How the function ends, for on_cancel hooks; see `runwire.tasks.RunPromise`."""

    def __init__(self, outcome: "Future[object]") -> None:
        self._outcome = outcome

    def __await__(self) -> Generator[Any, None, object]:
        return asyncio.wrap_future(self._outcome).__await__()

    def result(self, timeout: float | None = None) -> object:
        """Wait for it in a `def` hook."""
        return self._outcome.result(timeout)


async def _awaited(returned: object) -> object:
    return await cast(Awaitable[object], returned)


async def _either(whole: "asyncio.Future[Any]", reached: "asyncio.Future[Any]") -> None:
    await asyncio.wait([whole, reached], return_when=asyncio.FIRST_COMPLETED)


def _once(hook: Prepared, called: bool) -> None:
    if called:
        raise TaskError(f"{_named(hook)} called next() twice")


def _reached(hook: Prepared, called: bool) -> None:
    if not called:
        raise TaskError(f"{_named(hook)} did not call next(), so that the task was not executed")


def _named(hook: Prepared) -> str:
    return f"the middleware {hook.name}"
