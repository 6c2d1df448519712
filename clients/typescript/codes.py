"""Write client/src/codes.ts from the codes and bounds of runwire.wire; `--check` only compares.

Run by `make wire`. The file is committed; tests/clients/test_wire.py asserts that it is current.
"""

import json
import sys
from collections.abc import Iterable
from enum import IntEnum, StrEnum
from inspect import cleandoc
from pathlib import Path
from typing import get_args

from runwire import wire
from runwire.requests import RunStatus

TARGET = Path(__file__).parent / "client" / "src" / "codes.ts"

_ENUMS: tuple[type[IntEnum] | type[StrEnum], ...] = (
    wire.CloseCode,
    wire.ErrorCode,
    wire.GapReason,
    wire.EofReason,
)
_CONSTANTS = (
    "PROTOCOL",
    "BEARER_PREFIX",
    "SOCKET_PATH",
    "EVENTS_PATH",
    "MAX_FRAME_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_CLIENT_FRAME_BYTES",
    "MAX_EVENTS_BODY_BYTES",
    "AUTH_TIMEOUT",
    "HEARTBEAT",
    "SILENCE",
    "MAX_SUBSCRIPTIONS",
    "MAX_AWAIT",
    "LARGE_VALUE_BYTES",
    "MAX_CHUNK_BYTES",
    "FRAME_TOO_LARGE",
)


def render() -> str:
    """Return the text of codes.ts."""
    final = [reason.value.upper() for reason in wire.EofReason]
    never = [code for code in range(4000, 5000) if not wire.may_reconnect(code)]
    parts = [
        "// Generated from clients/python/runwire/wire.py by `make wire`. Do not edit.",
        "// Bounds are in bytes, seconds and counts.",
        "",
        *(f"export const {name} = {json.dumps(getattr(wire, name))};" for name in _CONSTANTS),
        "",
        "/** Sockets closed with a code in this range, or by FRAME_TOO_LARGE, stay closed. */",
        f"export const NO_RECONNECT = {{ first: {never[0]}, last: {never[-1]} }} as const;",
        *(line for enum in _ENUMS for line in _enum(enum)),
        *_list("RUN_STATUSES", "RunStatus", get_args(RunStatus), "Every status a run can have."),
        *_list("FINAL_STATUSES", "FinalStatus", final, "The statuses after which nothing changes."),
    ]
    return "\n".join(parts) + "\n"


def _enum(enum: type[IntEnum] | type[StrEnum]) -> list[str]:
    name = enum.__name__
    return [
        "",
        f"/** {cleandoc(enum.__doc__ or '')} */",
        f"export const {name} = {{",
        *(f"  {member.name}: {json.dumps(member.value)}," for member in enum),
        "} as const;",
        f"export type {name} = (typeof {name})[keyof typeof {name}];",
    ]


def _list(name: str, type_name: str, values: Iterable[str], about: str) -> list[str]:
    return [
        "",
        f"/** {about} */",
        f"export const {name} = [",
        *(f"  {json.dumps(value)}," for value in values),
        "] as const;",
        f"export type {type_name} = (typeof {name})[number];",
    ]


def main(arguments: list[str]) -> int:
    """Write the file, or with --check say whether it is current."""
    if "--check" not in arguments:
        TARGET.write_text(render(), encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == render():
        return 0
    sys.stderr.write("client/src/codes.ts is not what wire.py says: run `make wire`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
