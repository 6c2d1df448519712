"""What a task's payload and output must be: types, read by pydantic, or a parser."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NewType, cast, get_origin

import orjson
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from runwire._problems import problems
from runwire.errors import InvalidValueError, TaskError
from runwire.values import MAX_PAYLOAD_BYTES, encode
from runwire.wire import JsonObject

_NO_DEFAULT: Final = inspect.Parameter.empty


@dataclass(frozen=True)
class PayloadSchema:
    """What the payload of a task must be."""

    task: str
    # What reads a value: a type, or a function of the application that raises what it refuses.
    _reader: TypeAdapter[Any] | Callable[[Any], Any]
    _default: object = _NO_DEFAULT
    # Stored as it was given: what the schema makes of it may not be what the schema takes.
    _as_given: bool = False

    @classmethod
    def annotated(
        cls, annotation: Any, task: str, name: str, *, default: object = _NO_DEFAULT
    ) -> "PayloadSchema":
        """Read an annotation of the function `name`. Raises TaskError for one that is no type."""
        return cls(task, _adapter(annotation, name), default)

    @classmethod
    def given(cls, schema: object, task: str, *, default: object = _NO_DEFAULT) -> "PayloadSchema":
        """Take a type or a parser. Raises TaskError for what is neither."""
        return cls(task, _reader(schema, task), default, _as_given=True)

    @property
    def required(self) -> bool:
        """Whether the function has no default for its payload."""
        return self._default is _NO_DEFAULT

    def parse(self, text: str | None, payload_type: str = "application/json") -> Any:
        """Return a stored payload as the function expects it. Raises InvalidValueError."""
        if text is None and not self.required:
            return self._default
        return self._validated(_decoded(text, payload_type))

    def dump(self, payload: object) -> str | None:
        """Return a payload as JSON text once it was validated. Raises InvalidValueError."""
        if payload is None and not self.required:
            return None
        if not self._as_given and isinstance(self._reader, TypeAdapter):
            # With its defaults filled in, so that every attempt has the same.
            value = self._validated(payload)
            payload = self._reader.dump_python(value, mode="json", by_alias=True)
            return encode(payload, what="payload", limit=MAX_PAYLOAD_BYTES)
        text = encode(payload, what="payload", limit=MAX_PAYLOAD_BYTES)
        self.parse(text)
        return text

    def json_schema(self) -> JsonObject | None:
        """Return the JSON schema, or None for a type that has none, and for a parser."""
        try:
            return self._reader.json_schema() if isinstance(self._reader, TypeAdapter) else None
        except PydanticUserError:
            return None

    def _validated(self, value: object) -> Any:
        reader = self._reader
        try:
            return (
                reader.validate_python(value) if isinstance(reader, TypeAdapter) else reader(value)
            )
        except Exception as error:
            if isinstance(error, ValidationError):
                why = problems(error)
            else:
                why = f"{type(error).__name__}: {error}"
            raise InvalidValueError(
                f"payload does not fit task {self.task!r}: {why}", code="payload_invalid"
            ) from error


@dataclass(frozen=True)
class OutputSchema:
    """What a task function returns."""

    task: str
    _adapter: TypeAdapter[Any]

    @classmethod
    def of(cls, annotation: Any, task: str, name: str) -> "OutputSchema":
        """Read an annotation of the function `name`. Raises TaskError for one that is no type."""
        return cls(task, _adapter(annotation, name))

    def parse(self, output: object) -> Any:
        """Return `run.output` as what the function returned. Raises InvalidValueError."""
        try:
            return self._adapter.validate_python(output)
        except ValidationError as error:
            raise InvalidValueError(
                f"output does not fit task {self.task!r}: {problems(error)}", code="output_invalid"
            ) from error


def _reader(schema: object, task: str) -> TypeAdapter[Any] | Callable[[Any], Any]:
    if isinstance(schema, TypeAdapter):
        return cast(TypeAdapter[object], schema)
    is_type = isinstance(schema, (type, NewType)) or get_origin(schema) is not None
    if inspect.iscoroutinefunction(schema):
        raise TaskError(f"the schema of task {task!r} is an async function; a parser is `def`")
    if callable(schema) and not is_type:
        return schema
    try:
        if is_type:
            return TypeAdapter(cast(Any, schema))
    except PydanticUserError as error:
        raise _no_schema(task) from error
    raise _no_schema(task)


def _no_schema(task: str) -> TaskError:
    return TaskError(
        f"the schema of task {task!r} is neither a type that pydantic knows nor a function that "
        "takes a value and returns the payload"
    )


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
