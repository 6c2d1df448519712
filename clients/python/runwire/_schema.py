"""What a task's payload and output must be: annotations, read by pydantic."""

import inspect
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from runwire.errors import InvalidValueError, TaskError
from runwire.values import MAX_PAYLOAD_BYTES, encode
from runwire.wire import JsonObject

_NO_DEFAULT: Final = inspect.Parameter.empty


@dataclass(frozen=True)
class PayloadSchema:
    """What the payload of a task must be."""

    task: str
    _adapter: TypeAdapter[Any]
    _default: object = _NO_DEFAULT

    @classmethod
    def of(
        cls, annotation: Any, task: str, name: str, *, default: object = _NO_DEFAULT
    ) -> "PayloadSchema":
        """Read an annotation of the function `name`. Raises TaskError for one that is no type."""
        return cls(task, _adapter(annotation, name), default)

    @property
    def required(self) -> bool:
        """Whether the function has no default for its payload."""
        return self._default is _NO_DEFAULT

    def parse(self, text: str | None, payload_type: str) -> Any:
        """Return a stored payload as the function expects it. Raises InvalidValueError."""
        if text is None and not self.required:
            return self._default
        return self._validated(_decoded(text, payload_type))

    def dump(self, payload: object) -> str | None:
        """Return a payload as JSON text, with defaults filled in. Raises InvalidValueError."""
        if payload is None and not self.required:
            return None
        value = self._validated(payload)
        plain = self._adapter.dump_python(value, mode="json", by_alias=True)
        return encode(plain, what="payload", limit=MAX_PAYLOAD_BYTES)

    def json_schema(self) -> JsonObject | None:
        """Return the JSON schema, or None for a type that has none."""
        try:
            return self._adapter.json_schema()
        except PydanticUserError:
            return None

    def _validated(self, value: object) -> Any:
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            raise InvalidValueError(
                f"payload does not fit task {self.task!r}: {error}", code="payload_invalid"
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
                f"output does not fit task {self.task!r}: {error}", code="output_invalid"
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
