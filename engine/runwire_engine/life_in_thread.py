"""The life of an attempt in a thread: calls its hooks and its function."""

import inspect

from runwire._caught import caught
from runwire._context import WaitInfo
from runwire._hooks import Prepared
from runwire_engine.hook_calls import ThreadCalls
from runwire_engine.life import TOLD, Around, Life
from runwire_engine.lifecycle import Event, Phase
from runwire_engine.verdicts import Verdict


class LifeInThread(Life):
    """The life of a `def` task's attempt."""

    def __init__(self, around: Around, calls: ThreadCalls) -> None:
        super().__init__(around)
        self._calls = calls

    def live(self) -> Verdict | None:
        """Do every phase, and return what came of it."""
        self._until(Phase.MIDDLEWARE)
        if self.phase is Phase.MIDDLEWARE:
            self._through(self._hooks("middleware"))
        self._until(Phase.OVER)
        try:
            self._around.runtime.pipes.finish_blocking()
        except Exception as error:
            self._tell(self.phase, error)
        return self.verdict()

    def _through(self, middleware: tuple[Prepared, ...]) -> None:
        try:
            self._enter(middleware)
        except BaseException as error:
            self._went(self._raised(error))
        else:
            self._went(Event.DONE)

    def _enter(self, middleware: tuple[Prepared, ...]) -> None:
        if not middleware:
            self._went(Event.DONE)
            self._until(Phase.LEAVE)
            return
        outer, *rest = middleware
        self._calls.wrap(outer, self.offered(), lambda: self._enter(tuple(rest)))

    def _until(self, phase: Phase) -> None:
        while self.phase not in (phase, Phase.OVER):
            self._went(self._do(self.phase))

    def _do(self, phase: Phase) -> Event:
        try:
            match phase:
                case Phase.PAYLOAD:
                    self._parse()
                case Phase.OUTPUT:
                    self._serialise()
                case Phase.INIT:
                    self._init()
                case Phase.RUN:
                    self._run()
                case Phase.CATCH_ERROR:
                    with self._apart(phase.value):
                        return self._catch()
                case Phase.CANCEL:
                    self._around.cancel().result()
                case _:
                    self._call_all(phase)
        except BaseException as error:
            return self._raised(error)
        return Event.DONE

    def _run(self) -> None:
        arguments, named = self._arguments()
        try:
            self._output = self._task.function(*arguments, **named)
            self._around.runtime.pipes.finish_blocking()
        except BaseException as error:
            self._end_function(error)
            raise
        self._end_function(None)

    def _init(self) -> None:
        with self._apart("init"):
            hooks = self._hooks("init")
            self._take_init([self._calls.call(hook, self.offered()) for hook in hooks])

    async def told(self, kind: str, wait: WaitInfo) -> None:
        """Call the hooks around a wait that the task awaits on a loop of its own."""
        with self._apart(kind):
            for hook in self._hooks(kind):
                returned = hook.function(**hook.arguments({**self.offered(), "wait": wait}))
                if inspect.isawaitable(returned):
                    await returned

    def told_blocking(self, kind: str, wait: WaitInfo) -> None:
        """Call the hooks around a wait."""
        with self._apart(kind):
            for hook in self._hooks(kind):
                self._calls.call(hook, {**self.offered(), "wait": wait})

    def _call_all(self, phase: Phase) -> None:
        calls_again = self._calls_again(phase)
        with self._apart(phase.value):
            for hook in self._hooks(phase.value) if calls_again else ():
                try:
                    self._calls.call(hook, {**self.offered(), **dict(self._extra(phase))})
                except BaseException as error:
                    if phase not in TOLD:
                        raise
                    self._tell(phase, error, hook)

    def _catch(self) -> Event:
        default = self._default_delay()
        for hook in self._hooks("catch_error"):
            try:
                verdict = caught(self._calls.call(hook, self._catching(default)))
            except BaseException as error:
                event = self._caught_badly(error)
                if event is not None:
                    return event
                continue
            if verdict is not None:
                return self._judge(verdict, default)
        return self._judge(None, default)
