"""The hooks of a task, and those of every task: what is called around a task's function.

A hook names what it wants of what its kind offers, and is given that by keyword. In which order the
kinds are called is the engine's to know (runwire_engine.lifecycle).
"""

import inspect
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypedDict, TypeVar

from runwire import _context
from runwire.errors import TaskError

Hook: TypeAlias = Callable[..., object]
HookT = TypeVar("HookT", bound=Hook)
OutputT = TypeVar("OutputT")

_ALWAYS: Final = ("payload", "ctx", "signal", "task")
_LATER: Final = (*_ALWAYS, "init")
# What a hook of each kind may name.
OFFERED: Final[dict[str, tuple[str, ...]]] = {
    "middleware": (*_ALWAYS, "next"),
    "init": _ALWAYS,
    "on_start": _LATER,
    "on_start_attempt": _LATER,
    "on_wait": (*_LATER, "wait"),
    "on_resume": (*_LATER, "wait"),
    "catch_error": (*_LATER, "error", "retry", "retry_at", "retry_delay"),
    "on_success": (*_LATER, "output"),
    "on_failure": (*_LATER, "error"),
    "on_complete": (*_LATER, "result"),
    "on_cancel": (*_LATER, "run_promise"),
    "cleanup": _LATER,
}
# Other names of the same.
_ALIASES: Final = {"handle_error": "catch_error"}


class HookKeywords(TypedDict, total=False):
    """The hooks of a task as keywords of `@task`."""

    middleware: Hook
    init: Hook
    on_start: Hook
    on_start_attempt: Hook
    on_wait: Hook
    on_resume: Hook
    catch_error: Hook
    handle_error: Hook
    on_success: Hook
    on_failure: Hook
    on_complete: Hook
    on_cancel: Hook
    cleanup: Hook


@dataclass(frozen=True)
class Completion(Generic[OutputT]):
    """What `on_complete` gets as `result`."""

    ok: bool
    output: OutputT | None = None
    error: BaseException | None = None


class RunPromise(Protocol):
    """How the function ends that was canceled, for `on_cancel`.

    Awaited, or asked by `result`, it returns what the function returned, None when that was
    nothing, and raises what it raised.
    """

    def __await__(self) -> Generator[Any, None, Any]: ...

    def result(self, timeout: float | None = None) -> Any:
        """Wait for it in a `def` hook. Raises TimeoutError after so many seconds."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A hook, read once."""

    kind: str
    function: Hook
    is_async: bool
    wanted: tuple[str, ...]

    @classmethod
    def of(cls, kind: str, hook: Hook) -> "Prepared":
        """Read what a hook names. Raises TaskError when it asks for what there is not."""
        name = f"the {kind} hook {place(hook)}"
        if not callable(hook):
            raise TaskError(f"{kind} takes a function, not {hook!r}")
        if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
            raise TaskError(f"{name} is a generator; a hook is a plain or an async function")
        return cls(kind, hook, _is_async(hook), _wanted(hook, OFFERED[kind], name))

    @property
    def name(self) -> str:
        return place(self.function)

    def arguments(self, offered: Mapping[str, object]) -> dict[str, object]:
        """Return what the hook is called with."""
        return {name: offered[name] for name in self.wanted}


class Hooks:
    """The hooks of one task: at most one of a kind; or those of every task: any number."""

    def __init__(self, owner: str, *, many: bool = False, is_async: bool = True) -> None:
        """Take whose they are, and whether the function they are around is `async def`."""
        self._owner = owner
        self._many = many
        self._is_async = is_async
        self._held: dict[str, list[Prepared]] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def add(self, kind: str, hook: HookT) -> HookT:
        """Attach a hook. Raises TaskError when it cannot be one, or another one is there."""
        kind = _ALIASES.get(kind, kind)
        prepared = Prepared.of(kind, hook)
        if kind == "middleware" and self._is_async and not prepared.is_async:
            # A thread for each run would wait in it, while others wait for a thread.
            raise TaskError(
                f"the middleware {prepared.name} of {self._owner} is `async def` and awaits next() "
                "there; only that of a `def` task may be `def`"
            )
        # A module that is loaded again brings the same hooks again.
        others = [held for held in self._held.get(kind, []) if not _same(held.function, hook)]
        if others and not self._many:
            raise TaskError(
                f"{self._owner} already has the {kind} hook {place(others[0].function)}"
            )
        self._held[kind] = [*others, prepared]
        return hook

    def of(self, kind: str) -> tuple[Prepared, ...]:
        """Return the hooks of a kind, in the order they were attached."""
        return tuple(self._held.get(kind, ()))

    def clear(self) -> None:
        """Forget every hook, for tests."""
        self._held.clear()


class Hooked:
    """Attaches hooks, as decorators: `@write_story.on_success`, `@tasks.on_failure`."""

    hooks: Hooks

    def middleware(self, hook: HookT) -> HookT:
        """Wrap everything below: the hook awaits (or, `def`, calls) `next` once."""
        return self._attach("middleware", hook)

    def init(self, hook: HookT) -> HookT:
        """Call it before each attempt; what it returns is offered as `init`."""
        return self._attach("init", hook)

    def on_start(self, hook: HookT) -> HookT:
        """Call it once, before the first attempt of a run."""
        return self._attach("on_start", hook)

    def on_start_attempt(self, hook: HookT) -> HookT:
        """Call it before the function, in each attempt."""
        return self._attach("on_start_attempt", hook)

    def on_wait(self, hook: HookT) -> HookT:
        """Call it before the run waits."""
        return self._attach("on_wait", hook)

    def on_resume(self, hook: HookT) -> HookT:
        """Call it when the run goes on after a wait."""
        return self._attach("on_resume", hook)

    def catch_error(self, hook: HookT) -> HookT:
        """Call it with what an attempt raised; it may decide what becomes of the run."""
        return self._attach("catch_error", hook)

    def handle_error(self, hook: HookT) -> HookT:
        """The older name of `catch_error`."""
        return self._attach("handle_error", hook)

    def on_success(self, hook: HookT) -> HookT:
        """Call it with the output, before the run is COMPLETED."""
        return self._attach("on_success", hook)

    def on_failure(self, hook: HookT) -> HookT:
        """Call it with the error, before the run is FAILED, once no attempt is left."""
        return self._attach("on_failure", hook)

    def on_complete(self, hook: HookT) -> HookT:
        """Call it after `on_success` or `on_failure`, with the result of either."""
        return self._attach("on_complete", hook)

    def on_cancel(self, hook: HookT) -> HookT:
        """Call it when a run is canceled while it executes.

        It has 30 seconds from the cancellation on, and may still write metadata and streams.
        """
        return self._attach("on_cancel", hook)

    def cleanup(self, hook: HookT) -> HookT:
        """Call it after each attempt, whatever it came to."""
        return self._attach("cleanup", hook)

    def _attach(self, kind: str, hook: HookT) -> HookT:
        if _context.current() is not None:
            raise TaskError(f"{kind} hooks are attached where tasks are defined, not inside a run")
        return self.hooks.add(kind, hook)


class HooksOfAll(Hooked):
    """The hooks of every task: called before the task's own, `catch_error` after it."""

    def __init__(self) -> None:
        self.hooks = Hooks("every task", many=True)


of_all: Final = HooksOfAll()


def given_hooks(owner: str, keywords: Mapping[str, Any], *, is_async: bool) -> Hooks:
    """Return the hooks of a task that were given as keywords. Raises TaskError."""
    hooks = Hooks(owner, is_async=is_async)
    for kind, hook in keywords.items():
        if hook is not None:
            hooks.add(kind, hook)
    return hooks


def hooks_for(own: Hooks, kind: str) -> tuple[Prepared, ...]:
    """Return the hooks of a kind in the order they are called."""
    if kind == "catch_error":
        return own.of(kind) + of_all.hooks.of(kind)
    return of_all.hooks.of(kind) + own.of(kind)


def place(hook: object) -> str:
    """Return where a function was defined, to tell it by."""
    function = inspect.unwrap(hook) if callable(hook) else hook
    name = getattr(function, "__qualname__", None)
    return repr(function) if name is None else f"{getattr(function, '__module__', '')}.{name}"


def _same(one: Hook, other: Hook) -> bool:
    where = place(one)
    # Of a lambda or a closure there are several in one place.
    return one is other or (where == place(other) and "<" not in where)


def _is_async(hook: Hook) -> bool:
    call = getattr(hook, "__call__", None)  # noqa: B004  # an object whose call is a coroutine
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(call)


def _wanted(hook: Hook, offered: tuple[str, ...], name: str) -> tuple[str, ...]:
    wanted: list[str] = []
    try:
        parameters = inspect.signature(hook).parameters.values()
    except ValueError as error:
        raise TaskError(f"{name} cannot be read: {error}; wrap it in a function") from error
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            return offered
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and parameter.name in offered:
            wanted.append(parameter.name)
        elif not by_name or parameter.default is parameter.empty:
            raise TaskError(f"{name} takes {parameter}; it may name {', '.join(offered)}")
    return tuple(wanted)
