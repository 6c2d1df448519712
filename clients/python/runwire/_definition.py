"""What a task is: a plain function, its schema read from its annotations, its options."""

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import (
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_type_hints,
    overload,
)

import orjson
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from runwire import _triggering
from runwire._options import TriggerKeywords
from runwire.durations import Duration, seconds
from runwire.errors import InvalidValueError, TaskError
from runwire.values import MAX_PAYLOAD_BYTES, encode
from runwire.wire import JsonObject

PayloadT = TypeVar("PayloadT")
OutputT = TypeVar("OutputT")
ReturnT = TypeVar("ReturnT")
P = ParamSpec("P")

# What a task function may name after its payload.
OFFERED: Final = ("ctx", "signal")
MAX_ID_LENGTH: Final = 128
# What a task without a payload, or with a default for it, is triggered with.
NO_PAYLOAD: Final[Any] = None


class Signal(Protocol):
    """Tells a task that it was asked to stop: for `def` tasks, which cannot be interrupted."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run shall stop, or for so many seconds; say whether it shall."""
        ...

    def raise_if_set(self) -> None:
        """Leave the task at this point when the run shall stop."""
        ...


@dataclass(frozen=True)
class RetryOptions:
    """How often a run is tried, and what it waits in between. Times are seconds."""

    max_attempts: int = 3  # the first one included
    factor: float = 2.0
    min_timeout: float = 1.0
    max_timeout: float = 60.0
    randomize: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 1000:
            raise TaskError(f"retry max_attempts is 1 to 1000, not {self.max_attempts}")
        if self.factor < 1 or self.min_timeout < 0 or self.max_timeout < self.min_timeout:
            raise TaskError("retry needs factor >= 1 and 0 <= min_timeout <= max_timeout")


@dataclass(frozen=True)
class QueueOptions:
    """Which queue a task's runs wait in, and how many of it execute at once (None: no limit)."""

    name: str
    concurrency_limit: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= MAX_ID_LENGTH:
            raise TaskError(f"a queue name is 1 to {MAX_ID_LENGTH} characters")
        if self.concurrency_limit is not None and self.concurrency_limit < 0:
            raise TaskError("concurrency_limit cannot be negative")


class RetryKeywords(TypedDict, total=False):
    max_attempts: int
    factor: float
    min_timeout: Duration
    max_timeout: Duration
    randomize: bool


class QueueKeywords(TypedDict, total=False):
    name: str
    concurrency_limit: int | None


CancelHook: TypeAlias = Callable[..., object]
CancelHookT = TypeVar("CancelHookT", bound=CancelHook)


class BatchEntry(TypedDict, Generic[PayloadT], total=False):
    """One run of `batch_trigger`: its payload and the options of `trigger`."""

    payload: PayloadT
    options: TriggerKeywords


class Task(Generic[PayloadT, OutputT, P, ReturnT]):
    """A task. Calling it calls the plain function; `trigger` starts a run of it."""

    def __init__(
        self,
        function: Callable[..., ReturnT],
        *,
        id: str,
        retry: RetryOptions,
        queue: QueueOptions,
        max_duration: float | None,
        on_cancel: CancelHook | None,
    ) -> None:
        self.id = id
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.retry = retry
        self.queue = queue
        # Seconds of one attempt, or None.
        self.max_duration = max_duration
        # Called when a run is canceled while it executes; it has 30 seconds.
        self.cancel_hook = on_cancel
        signature = _Signature.of(function)
        # What the function names, in the order of OFFERED, with "payload" first if it takes one.
        self.parameters = signature.parameters
        self._payload = signature.payload
        self._output = signature.output
        self._payload_required = signature.payload_default is inspect.Parameter.empty
        self._payload_default = signature.payload_default
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", id)
        self.__module__ = function.__module__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ReturnT:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.id}>"

    @property
    def sync(self) -> "SyncTask[PayloadT, OutputT]":
        """The blocking twins of `trigger` and `batch_trigger`, for `def` tasks and scripts."""
        return SyncTask(cast("Task[PayloadT, OutputT, ..., Any]", self))

    async def trigger(
        self, payload: PayloadT = NO_PAYLOAD, **options: Unpack[TriggerKeywords]
    ) -> "_triggering.RunHandle[OutputT]":
        """Start a run. The payload is validated first; raises InvalidValueError when it is wrong.

        Inside a run the new run is its child; elsewhere the call goes over HTTP.
        """
        return await _triggering.trigger(None, self.id, self.dump_payload(payload), options)

    async def batch_trigger(
        self, items: Sequence[BatchEntry[PayloadT]], *, idempotency_key: str | None = None
    ) -> "_triggering.BatchHandle":
        """Start up to 1 000 runs as one batch: `[{"payload": …, "options": {…}}, …]`."""
        return await _triggering.trigger_batch(None, self.entries(items), idempotency_key)

    def on_cancel(self, hook: CancelHookT) -> CancelHookT:
        """Attach what is called when a run is canceled while it executes.

        The hook names what it wants of `payload` and `ctx`, has 30 seconds, and may still write
        metadata and streams.
        """
        if self.cancel_hook is not None and self.cancel_hook is not hook:
            raise TaskError(f"task {self.id!r} already has an on_cancel hook")
        self.cancel_hook = hook
        return hook

    def bind(
        self, payload: object, offered: Mapping[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return the arguments of one call: the payload if it is taken, and what is named."""
        arguments = (payload,) if "payload" in self.parameters else ()
        named = {name: offered[name] for name in self.parameters if name in offered}
        return arguments, named

    def parse_payload(
        self, text: str | None, payload_type: str = "application/json"
    ) -> PayloadT | None:
        """Return the payload of a run as the function expects it.

        Raises InvalidValueError (code "payload_invalid") when it does not fit the annotation.
        """
        if self._payload is None:
            return None
        if text is None and not self._payload_required:
            return cast(PayloadT, self._payload_default)
        return cast(PayloadT, _validated(self._payload, _decoded(text, payload_type), self.id))

    def dump_payload(self, payload: object) -> str | None:
        """Return a payload as JSON text, validated and with defaults filled in.

        Raises InvalidValueError (code "payload_invalid") when it does not fit the annotation.
        """
        if self._payload is None:
            if payload is not None:
                raise InvalidValueError(
                    f"task {self.id!r} takes no payload", code="payload_invalid"
                )
            return None
        if payload is None and not self._payload_required:
            return None
        value = _validated(self._payload, payload, self.id)
        plain = self._payload.dump_python(value, mode="json", by_alias=True)
        return encode(plain, what="payload", limit=MAX_PAYLOAD_BYTES)

    @property
    def payload_required(self) -> bool:
        """Whether the function takes a payload for which it has no default."""
        return self._payload_required

    def payload_schema(self) -> JsonObject | None:
        """Return the payload's JSON schema, or None when it takes none or has no schema."""
        if self._payload is None:
            return None
        try:
            return self._payload.json_schema()
        except PydanticUserError:
            return None

    def parse_output(self, output: object) -> OutputT:
        """Return `run.output` as what the function returned. Raises InvalidValueError."""
        try:
            return cast(OutputT, self._output.validate_python(output))
        except ValidationError as error:
            raise InvalidValueError(
                f"output does not fit task {self.id!r}: {error}", code="output_invalid"
            ) from error

    def entries(self, items: Sequence[BatchEntry[PayloadT]]) -> list["_triggering.Entry"]:
        """Return batch items as they are triggered, each payload validated."""
        return [
            _triggering.Entry(
                self.id, self.dump_payload(item.get("payload")), item.get("options", {})
            )
            for item in items
        ]


class SyncTask(Generic[PayloadT, OutputT]):
    """The blocking twins of a task's calls."""

    def __init__(self, task: Task[PayloadT, OutputT, ..., Any]) -> None:
        self._task = task

    def trigger(
        self, payload: PayloadT = NO_PAYLOAD, **options: Unpack[TriggerKeywords]
    ) -> "_triggering.RunHandle[OutputT]":
        """Start a run, as `Task.trigger` does."""
        task = self._task
        return _triggering.trigger_blocking(None, task.id, task.dump_payload(payload), options)

    def batch_trigger(
        self, items: Sequence[BatchEntry[PayloadT]], *, idempotency_key: str | None = None
    ) -> "_triggering.BatchHandle":
        """Start up to 1 000 runs as one batch, as `Task.batch_trigger` does."""
        return _triggering.trigger_batch_blocking(None, self._task.entries(items), idempotency_key)


class Decorator(Protocol):
    """What `task(…)` returns: it makes a function a task and keeps its types."""

    @overload
    def __call__(
        self, function: Callable[[], Coroutine[Any, Any, OutputT]], /
    ) -> Task[None, OutputT, [], Coroutine[Any, Any, OutputT]]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[PayloadT, P], Coroutine[Any, Any, OutputT]], /
    ) -> Task[PayloadT, OutputT, Concatenate[PayloadT, P], Coroutine[Any, Any, OutputT]]: ...

    @overload
    def __call__(self, function: Callable[[], OutputT], /) -> Task[None, OutputT, [], OutputT]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[PayloadT, P], OutputT], /
    ) -> Task[PayloadT, OutputT, Concatenate[PayloadT, P], OutputT]: ...


@dataclass(frozen=True)
class _Signature:
    parameters: tuple[str, ...]
    payload: TypeAdapter[Any] | None
    payload_default: object  # Parameter.empty where there is none
    output: TypeAdapter[Any]

    @classmethod
    def of(cls, function: Callable[..., object]) -> "_Signature":
        """Read what a task function takes. Raises TaskError when it asks for what there is not."""
        name = getattr(function, "__qualname__", repr(function))
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TaskError(
                f"{name} is a generator; a task returns its output, streams.pipe yields"
            )
        given = list(inspect.signature(function).parameters.values())
        first = given[0] if given and given[0].name not in OFFERED else None
        named = [parameter.name for parameter in given if parameter is not first]
        unknown = [parameter for parameter in named if parameter not in OFFERED]
        if unknown or (first is not None and first.kind is not first.POSITIONAL_OR_KEYWORD):
            raise TaskError(
                f"{name} takes {', '.join(unknown) or str(first)}; a task takes its payload first, "
                f"then any of {', '.join(OFFERED)} by name"
            )
        hints = _hints(function, name)
        payload = None if first is None else _adapter(hints.get(first.name, Any), name)
        taken = ("payload",) if first is not None else ()
        return cls(
            parameters=taken + tuple(offer for offer in OFFERED if offer in named),
            payload=payload,
            payload_default=None if first is None else first.default,
            output=_adapter(hints.get("return", Any), name),
        )


def _hints(function: Callable[..., object], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TaskError(
            f"an annotation of {name} cannot be read: {error}; define its type at module level, "
            "outside of `if TYPE_CHECKING`"
        ) from error


def _adapter(annotation: Any, name: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as error:
        # A class of the application: it cannot come from JSON, but an instance check is a schema.
        try:
            return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
        except PydanticUserError:
            raise TaskError(f"{name} is annotated with {annotation!r}: {error}") from error


def _decoded(text: str | None, payload_type: str) -> object:
    if text is None:
        return None
    if payload_type == "text/plain":
        return text
    value: object = orjson.loads(text)
    if payload_type == "application/super+json" and isinstance(value, dict):
        return cast(dict[str, object], value).get("json")
    return value


def _validated(adapter: TypeAdapter[Any], value: object, task: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InvalidValueError(
            f"payload does not fit task {task!r}: {error}", code="payload_invalid"
        ) from error


def retry_options(given: RetryOptions | RetryKeywords | None) -> RetryOptions:
    """Return retry options as written by a user. Raises TaskError for a key that is none."""
    if given is None or isinstance(given, RetryOptions):
        return given or RetryOptions()
    values = _known(dict(given), RetryOptions, "retry")
    for key in ("min_timeout", "max_timeout"):
        if key in values:
            values[key] = seconds(cast(Duration, values[key]))
    minimum = values.get("min_timeout", 0.0)
    if "max_timeout" not in values and isinstance(minimum, float):
        values["max_timeout"] = max(RetryOptions.max_timeout, minimum)
    return RetryOptions(**cast(Any, values))


def queue_options(given: QueueOptions | QueueKeywords | str | None, task: str) -> QueueOptions:
    """Return queue options as written by a user; without a name, the task's own queue."""
    match given:
        case None:
            return QueueOptions(name=f"task/{task}")
        case str():
            return QueueOptions(name=given)
        case QueueOptions():
            return given
        case _:
            values = {"name": f"task/{task}", **_known(dict(given), QueueOptions, "queue")}
            return QueueOptions(**cast(Any, values))


def _known(values: dict[str, object], options: type[Any], what: str) -> dict[str, object]:
    names = [field.name for field in fields(options)]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise TaskError(f"{what} has no option {', '.join(unknown)}; it has {', '.join(names)}")
    return values
