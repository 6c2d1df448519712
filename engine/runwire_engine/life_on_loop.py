"""The life of an attempt on the task loop: awaits its hooks and its function."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from runwire._caught import caught
from runwire._context import WaitInfo
from runwire._hooks import Prepared
from runwire_engine.bridge import arrival
from runwire_engine.hook_calls import LoopCalls, ThreadCalls
from runwire_engine.life import TOLD, Around, Life
from runwire_engine.lifecycle import Event, Phase
from runwire_engine.verdicts import Verdict


class LifeOnLoop(Life):
    """The life of an `async def` task's attempt."""

    def __init__(self, around: Around, calls: LoopCalls) -> None:
        super().__init__(around)
        self._calls = calls

    async def live(self) -> Verdict | None:
        """Do every phase, and return what came of it."""
        await self._until(Phase.MIDDLEWARE)
        if self.phase is Phase.MIDDLEWARE:
            await self._through(self._hooks("middleware"))
        await self._until(Phase.OVER)
        try:
            await self._around.runtime.pipes.finish()
        except Exception as error:
            self._tell(self.phase, error)
        return self.verdict()

    async def _through(self, middleware: tuple[Prepared, ...]) -> None:
        try:
            await self._enter(middleware)
        except BaseException as error:
            self._went(self._raised(error))
        else:
            self._went(Event.DONE)

    async def _enter(self, middleware: tuple[Prepared, ...]) -> None:
        if not middleware:
            self._went(Event.DONE)
            await self._until(Phase.LEAVE)
            return
        outer, *rest = middleware
        await self._calls.wrap(outer, self.offered(), lambda: self._enter(tuple(rest)))

    async def _until(self, phase: Phase) -> None:
        while self.phase not in (phase, Phase.OVER):
            self._went(await self._do(self.phase))

    async def _do(self, phase: Phase) -> Event:
        try:
            match phase:
                case Phase.PAYLOAD:
                    self._parse()
                case Phase.OUTPUT:
                    self._serialise()
                case Phase.INIT:
                    await self._init()
                case Phase.RUN:
                    await self._run()
                case Phase.CATCH_ERROR:
                    with self._apart(phase.value):
                        return await self._catch()
                case Phase.CANCEL:
                    await arrival(self._around.cancel())
                case _:
                    await self._call_all(phase)
        except BaseException as error:
            self._resume(error)
            return self._raised(error)
        return Event.DONE

    def _resume(self, error: BaseException) -> None:
        """Take back the interruption that was heeded, so that what is awaited next is awaited."""
        task = asyncio.current_task()
        heeded = isinstance(error, asyncio.CancelledError)
        if task is not None and heeded and self._around.interruption() is not None:
            task.uncancel()

    async def _run(self) -> None:
        arguments, named = self._arguments()
        function = cast(Callable[..., Coroutine[Any, Any, object]], self._task.function)
        try:
            self._output = await function(*arguments, **named)
            await self._around.runtime.pipes.finish()
        except BaseException as error:
            self._around.runtime.pipes.abort()
            self._end_function(error)
            raise
        self._end_function(None)

    async def _init(self) -> None:
        with self._apart("init"):
            hooks = self._hooks("init")
            self._take_init([await self._calls.call(hook, self.offered()) for hook in hooks])

    async def told(self, kind: str, wait: WaitInfo) -> None:
        """Call the hooks around a wait."""
        with self._apart(kind):
            for hook in self._hooks(kind):
                await self._calls.call(hook, {**self.offered(), "wait": wait})

    def told_blocking(self, kind: str, wait: WaitInfo) -> None:
        """Call the hooks around a wait that blocks a thread of the task's own."""
        calls = ThreadCalls()
        try:
            with self._apart(kind):
                for hook in self._hooks(kind):
                    calls.call(hook, {**self.offered(), "wait": wait})
        finally:
            calls.close()

    async def _call_all(self, phase: Phase) -> None:
        calls_again = self._calls_again(phase)
        with self._apart(phase.value):
            for hook in self._hooks(phase.value) if calls_again else ():
                try:
                    await self._calls.call(hook, {**self.offered(), **dict(self._extra(phase))})
                except BaseException as error:
                    if phase not in TOLD:
                        raise
                    self._tell(phase, error, hook)

    async def _catch(self) -> Event:
        default = self._default_delay()
        for hook in self._hooks("catch_error"):
            try:
                verdict = caught(await self._calls.call(hook, self._catching(default)))
            except BaseException as error:
                event = self._caught_badly(error)
                if event is not None:
                    return event
                continue
            if verdict is not None:
                return self._judge(verdict, default)
        return self._judge(None, default)
