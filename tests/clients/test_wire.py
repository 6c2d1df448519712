"""The samples in tests/wire/ are messages of runwire.wire, and every message has one.

clients/typescript/client/test/wire.test.ts reads the same files.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import BaseModel, ConfigDict, create_model

from runwire import wire

_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "tests" / "wire"
# Not samples of a message but vectors of a reducer.
_VECTORS = {"connection.json", "metadata.json", "subscription.json", "subscription_states.json"}


@dataclass(frozen=True)
class Sample:
    name: str
    description: str
    message: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.message["type"])


def _samples() -> list[Sample]:
    files = sorted(path for path in _FOLDER.glob("*.json") if path.name not in _VECTORS)
    return [Sample(name=path.stem, **json.loads(path.read_text("utf-8"))) for path in files]


def _type_name(message: Any) -> str:
    name: str = get_args(get_type_hints(message)["type"])[0]
    return name


SAMPLES = _samples()
CLIENT: dict[str, type[BaseModel]] = {
    _type_name(message): message for message in get_args(get_args(wire.ClientMessage)[0])
}
SERVER: dict[str, Any] = {_type_name(message): message for message in get_args(wire.ServerMessage)}


def _server_message(name: str) -> type[BaseModel]:
    # A server message is exact: a sample with a field that does not exist is a wrong sample.
    shape = SERVER[name]
    fields: dict[str, Any] = {
        field: (of, ... if field in shape.__required_keys__ else None)
        for field, of in get_type_hints(shape).items()
    }
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_sample_is_a_message_of_the_protocol(sample: Sample) -> None:
    assert sample.description.endswith(".")
    if sample.type in CLIENT:
        request = wire.CLIENT_MESSAGE.validate_python(sample.message)
        sent = request.model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert {**sent, "type": sample.type} == sample.message
    else:
        parsed = _server_message(sample.type).model_validate(sample.message)
        assert parsed.model_dump(exclude_unset=True) == sample.message


@pytest.mark.parametrize("name", sorted(CLIENT | SERVER))
def test_every_message_has_a_sample_named_after_it(name: str) -> None:
    assert name in {sample.name for sample in SAMPLES if sample.type == name}


def test_no_message_goes_both_ways() -> None:
    assert not CLIENT.keys() & SERVER.keys()


def test_the_typescript_codes_are_generated_from_the_wire() -> None:
    """`make wire` writes them; they are committed so that building needs no Python."""
    generator = _ROOT / "clients" / "typescript" / "codes.py"
    check = subprocess.run(
        [sys.executable, str(generator), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("code", wire.CloseCode, ids=lambda code: code.name)
def test_a_close_code_says_by_its_range_whether_to_come_back(code: wire.CloseCode) -> None:
    assert wire.may_reconnect(code) is (code < 4400)
