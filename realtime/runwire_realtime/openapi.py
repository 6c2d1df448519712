"""The OpenAPI 3.1 description, made of the same operations that the router is made of."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import Final, Literal, TypeAlias, cast

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from runwire.requests import ErrorAnswer
from runwire.wire import Json, JsonObject
from runwire_realtime.api.call import REQUEST_KEY_HEADER
from runwire_realtime.api.operation import Operation

_PARAMETER = re.compile(r"\{([A-Za-z]+)(?::path)?\}")
_REF: Final = "#/components/schemas/{model}"
_Mode: TypeAlias = Literal["validation", "serialization"]
_DEFINITIONS: TypeAlias = dict[tuple[type[BaseModel], _Mode], JsonObject]
_TOKEN_RESPONSE_HEADER: Final = {
    "schema": {"type": "string"},
    "description": "A token that reads what was made, and its claims as JSON.",
}


def describe(operations: Sequence[Operation]) -> JsonObject:
    """Return the OpenAPI document of these operations."""
    references, components = _schemas(operations)
    paths: dict[str, JsonObject] = {}
    for operation in operations:
        path = _PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Runwire",
            "version": version("runwire"),
            "description": "Tasks, runs and their streams. Times are UTC with milliseconds; a"
            " field that is absent has no value.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, or a public token with a scope named here.",
                }
            },
        },
    }


def _schemas(operations: Sequence[Operation]) -> tuple[_DEFINITIONS, JsonObject]:
    wanted: dict[tuple[type[BaseModel], _Mode], None] = {(ErrorAnswer, "serialization"): None}
    for operation in operations:
        wanted[operation.answer, "serialization"] = None
        if operation.body is not None:
            wanted[operation.body, "validation"] = None
    references, document = models_json_schema(list(wanted), ref_template=_REF)
    return cast(_DEFINITIONS, references), document.get("$defs", {})


def _operation(operation: Operation, references: _DEFINITIONS) -> JsonObject:
    described: JsonObject = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": _responses(operation, references),
    }
    if operation.credential != "open":
        described["security"] = [{"bearer": []}]
        described["description"] = (
            "An API key only."
            if operation.credential == "key"
            else f"An API key, or a token with one of: {operation.scopes}."
        )
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": {operation.body_type: {"schema": references[operation.body, "validation"]}},
        }
    elif operation.body_type != "application/json":
        described["requestBody"] = {
            "required": True,
            "content": {
                operation.body_type: {"schema": {"type": "string"}, "example": "one chunk"}
            },
        }
    return described


def _parameters(operation: Operation) -> list[JsonObject]:
    parameters = [_path_parameter(name) for name in _PARAMETER.findall(operation.path)]
    if operation.query is not None:
        parameters += _query_parameters(operation.query)
    if operation.request_key:
        parameters.append(
            {
                "name": REQUEST_KEY_HEADER,
                "in": "header",
                "description": "The same on every retry of one call, which then happens once.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 256},
            }
        )
    return parameters


def _path_parameter(name: str) -> JsonObject:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    }


def _query_parameters(model: type[BaseModel]) -> list[JsonObject]:
    schema = model.model_json_schema(by_alias=True)
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": _without_null(part),
        }
        for name, part in schema["properties"].items()
    ]


def _without_null(schema: Json) -> Json:
    """Drop null from a parameter's schema: in a query, absent is the only way to say nothing."""
    kept = {key: value for key, value in schema.items() if key not in {"title", "default"}}
    alternatives = [part for part in kept.pop("anyOf", []) if part != {"type": "null"}]
    return {**kept, **alternatives[0]} if len(alternatives) == 1 else kept


def _responses(operation: Operation, references: _DEFINITIONS) -> JsonObject:
    responses: JsonObject = {
        str(operation.status): {
            "description": "Done",
            "content": {
                "application/json": {"schema": references[operation.answer, "serialization"]}
            },
        }
    }
    if operation.answer_headers:
        responses[str(operation.status)]["headers"] = {
            name: _TOKEN_RESPONSE_HEADER for name in operation.answer_headers
        }
    refused: JsonObject = {"schema": references[ErrorAnswer, "serialization"]}
    for status in _error_statuses(operation):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": refused},
        }
    return responses


def _error_statuses(operation: Operation) -> list[int]:
    always = {400, 503} if operation.credential == "open" else {400, 401, 403, 503}
    return sorted(always | set(operation.errors))
