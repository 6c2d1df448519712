"""Writes the parts of these pages that the code decides: `python -m docs.generate`.

A page holds `<!-- generated: name -->` … `<!-- end -->`; what stands between is made of the very
objects the server, the worker and the command line are made of. tests/test_docs.py compares.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, Protocol, TypeAlias, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema
from pydantic_settings import BaseSettings
from typer.main import get_command

from runwire.wire import Json, JsonObject
from runwire_engine.settings import EngineSettings
from runwire_engine.states import FINAL, INITIAL, TRANSITIONS
from runwire_realtime.api.operation import Operation
from runwire_realtime.commands import app
from runwire_realtime.hub_settings import HubSettings
from runwire_realtime.settings import ServerSettings

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent
_Mode: TypeAlias = Literal["validation", "serialization"]
PAGES: Final = (
    DOCS / "reference" / "http-api.md",
    DOCS / "reference" / "cli.md",
    DOCS / "reference" / "settings.md",
    DOCS / "design" / "runs.md",
)
_PART: Final = re.compile(
    r"(<!-- generated: ([a-z_-]+) -->\n).*?(<!-- end -->)", re.DOTALL | re.MULTILINE
)
# Modules of routes, in the order of the page.
GROUPS: Final = (
    "triggers",
    "runs",
    "timeline",
    "tags",
    "metadata",
    "streams",
    "inputs",
    "batches",
    "idempotency_keys",
    "waitpoints",
    "tasks",
    "schedules",
    "queues",
    "tokens",
    "session",
    "health",
)


def written(page: str) -> str:
    """Return a page with every generated part as it should be. Raises KeyError for an unknown."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]().strip()}\n{part[3]}", page)


# Settings


def settings(model: type[BaseSettings], without: type[BaseSettings] = BaseSettings) -> str:
    """Return a table of the variables of a settings model, but for those of another."""
    rows = [
        (
            f"`{variable(name)}`",
            "required" if _is_required(field) else _default(field.get_default()),
            f"{field.description or ''}{_bounds(field.metadata)}",
        )
        for name, field in model.model_fields.items()
        if name not in without.model_fields
    ]
    return _table(("variable", "default", "meaning"), rows)


def _is_required(field: FieldInfo) -> bool:
    # A text that must not be empty and is: "required", in a way that type checkers accept.
    least = max((getattr(part, "min_length", 0) for part in field.metadata), default=0)
    return field.is_required() or (field.get_default() == "" and least > 0)


def variable(name: str) -> str:
    """Return the environment variable of a settings field."""
    return f"RUNWIRE_{name.upper()}"


def _default(value: object) -> str:
    if value in (None, "", ()):
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _bounds(metadata: Sequence[object]) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most"}
    found = [
        f"{word} {getattr(part, name):g}"
        for part in metadata
        for name, word in words.items()
        if hasattr(part, name)
    ]
    return f" ({', '.join(found)})" if found else ""


# The command line


class Parameter(Protocol):
    """What is read of a parameter; typer's own classes are not typed for it."""

    name: str
    param_type_name: str
    opts: list[str]
    secondary_opts: list[str]
    required: bool
    default: object
    multiple: bool
    is_flag: bool
    nargs: int
    metavar: str | None
    envvar: str | None
    help: str | None


class Command(Protocol):
    """A command, or a group of them."""

    help: str | None
    params: list[Parameter]


def commands() -> Iterator[tuple[str, Command]]:
    """Yield every command with its name as it is typed."""
    yield from _below("runwire", cast(Command, get_command(app)))


def _below(name: str, command: Command) -> Iterator[tuple[str, Command]]:
    children = cast(Mapping[str, Command], getattr(command, "commands", {}))
    if not children:
        yield name, command
    for word, child in children.items():
        yield from _below(f"{name} {word}", child)


def command_line() -> str:
    """Return a section for every command."""
    return "\n\n".join(_command(name, command) for name, command in commands())


def _command(name: str, command: Command) -> str:
    options = [each for each in command.params if each.param_type_name == "option"]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join([name, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    rows = [(f"`{_argument(each)}`", "", each.help or "") for each in arguments]
    rows += [(_names(each), _option_default(each), each.help or "") for each in options]
    text = f"### `{name}`\n\n{command.help}\n\n```\n{usage}\n```"
    return f"{text}\n\n{_table(('', 'default', 'meaning'), rows)}" if rows else text


def _argument(parameter: Parameter) -> str:
    word = parameter.metavar or parameter.name.upper() + ("..." if parameter.nargs < 0 else "")
    return word if parameter.required else f"[{word}]"


def _names(parameter: Parameter) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return f"{names}, repeatable" if parameter.multiple else names


def _option_default(parameter: Parameter) -> str:
    given = "" if parameter.envvar is None else f"`{parameter.envvar}`, else "
    if parameter.is_flag:
        return given + ("on" if parameter.default else "off")
    return given + ("" if parameter.default is None else f"`{parameter.default}`")


# The HTTP API


def operations() -> tuple[Operation, ...]:
    """Return every operation that the server routes."""
    application = import_module("runwire_realtime.app")
    return cast(tuple[Operation, ...], application.OPERATIONS)


def group(name: str) -> ModuleType:
    """Return a module of operations."""
    return import_module(f"runwire_realtime.api.{name}")


def routes(name: str) -> str:
    """Return a section for every operation of a module."""
    grouped = cast(tuple[Operation, ...], group(name).OPERATIONS)
    return "\n\n".join(_operation(each) for each in grouped)


def _operation(operation: Operation) -> str:
    path = re.sub(r":path\}", "}", operation.path)
    lines = [
        f"### {operation.summary}",
        f"`{operation.method} {path}`",
        _list(
            ("credential", _credential(operation)),
            ("query", _query(operation)),
            ("header", "`x-trigger-request-idempotency-key`" if operation.request_key else ""),
            ("body", _body(operation)),
            ("answer", _answer(operation)),
            ("errors", _errors(operation)),
        ),
    ]
    return "\n\n".join(lines)


def _credential(operation: Operation) -> str:
    match operation.credential:
        case "grant":
            return f"an API key, or a token with any of {_quoted(operation.scopes)}"
        case "key":
            return "an API key"
        case "open":
            return "none in the header"


def _quoted(scopes: str) -> str:
    return re.sub(r"\b(read|write|trigger|batchTrigger):[\w:]+(<\w+>)?", r"`\g<0>`", scopes)


def _query(operation: Operation) -> str:
    if operation.query is None:
        return ""
    properties = cast(JsonObject, operation.query.model_json_schema()["properties"])
    return ", ".join(f"`{name}`" for name in properties)


def _body(operation: Operation) -> str:
    kind = operation.body_type
    if operation.body is None:
        return "" if kind == "application/json" else f"`{kind}`"
    told = f"[{operation.body.__name__}](#{operation.body.__name__.lower()})"
    if kind != "application/json":
        told = f"{told}, one a line (`{kind}`)"
    return told if operation.body_required else f"{told}, may be left out"


def _answer(operation: Operation) -> str:
    answered = operation.answer.__name__
    told = f"{operation.status}, [{answered}](#{answered.lower()})"
    if operation.answer_headers:
        told += f"; headers {', '.join(f'`{name}`' for name in operation.answer_headers)}"
    return told


def _errors(operation: Operation) -> str:
    always = {400, 503} if operation.credential == "open" else {400, 401, 403, 503}
    return ", ".join(map(str, sorted(always | set(operation.errors))))


def shapes() -> str:
    """Return a table for every body and answer, and for what they are made of."""
    models: dict[tuple[type[BaseModel], _Mode], None] = {}
    for name in GROUPS:
        for operation in cast(tuple[Operation, ...], group(name).OPERATIONS):
            if operation.body is not None:
                models[operation.body, "validation"] = None
            models[operation.answer, "serialization"] = None
    _, document = models_json_schema(list(models))
    definitions = cast(Mapping[str, JsonObject], document["$defs"])
    return "\n\n".join(_shape(name, definitions[name]) for name in sorted(definitions))


def _shape(name: str, schema: JsonObject) -> str:
    required = cast(Sequence[str], schema.get("required", []))
    rows = [
        (f"`{field}`", _type(part), "yes" if field in required else "")
        for field, part in cast(Mapping[str, JsonObject], schema.get("properties", {})).items()
    ]
    return f"### {name}\n\n{_table(('field', 'type', 'required'), rows)}"


def _type(schema: JsonObject) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    alternatives = cast(Sequence[JsonObject], schema.get("anyOf", ()))
    if alternatives:
        return " or ".join(_type(each) for each in alternatives if each != {"type": "null"})
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{each}`" for each in cast(Sequence[Json], schema["enum"]))
    kind = str(schema.get("type", "JSON"))
    if kind == "array":
        return f"list of {_type(cast(JsonObject, schema.get('items', {})))}{_limits(schema)}"
    return f"{kind}{_limits(schema)}"


def _limits(schema: JsonObject) -> str:
    least = schema.get("minLength", schema.get("minItems", schema.get("minimum")))
    most = schema.get("maxLength", schema.get("maxItems", schema.get("maximum")))
    words = [
        f"{least} to {most}" if least is not None and most is not None else "",
        f"at least {least}" if least is not None and most is None else "",
        f"at most {most}" if least is None and most is not None else "",
        f"more than {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else "",
        f"less than {schema['exclusiveMaximum']}" if "exclusiveMaximum" in schema else "",
    ]
    unit = " characters" if "minLength" in schema or "maxLength" in schema else ""
    found = ", ".join(filter(None, words))
    return f" ({found}{unit})" if found else ""


# The states of a run


def states() -> str:
    """Return the transition table as a diagram."""
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {status}" for status in TRANSITIONS if status in INITIAL]
    for status, targets in TRANSITIONS.items():
        lines += [f"    {status} --> {target}" for target in TRANSITIONS if target in targets]
    lines += [f"    {status} --> [*]" for status in TRANSITIONS if status in FINAL]
    return "\n".join([*lines, "```"])


# Markdown


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells
    )


def _list(*items: tuple[str, str]) -> str:
    return "\n".join(f"- {name}: {told}" for name, told in items if told)


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "server-settings": lambda: settings(ServerSettings, without=HubSettings),
    "hub-settings": lambda: settings(HubSettings),
    "engine-settings": lambda: settings(EngineSettings),
    "commands": command_line,
    "states": states,
    "shapes": shapes,
    **{f"routes-{name}": partial(routes, name) for name in GROUPS},
}


def main() -> None:
    """Write every page anew."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            sys.stdout.write(f"wrote {page.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
