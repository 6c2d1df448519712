"""What `runwire dev` prints to be pasted."""

import shlex
import sys
from pathlib import Path

import pytest

from runwire_realtime.commands.first_steps import lines_to_try, program
from runwire_realtime.dev import Example, Running


def _running(example: Example | None) -> Running:
    return Running("http://127.0.0.1:1", "http://127.0.0.1:1/#s", "tr_dev_sk_a", "dsn", example)


def test_the_lines_are_words_of_a_shell() -> None:
    export, trigger, curl = lines_to_try(_running(Example("it's", '{"a": "b\'c"}')), "bin/runwire")
    assert shlex.split(export) == [
        "export",
        "RUNWIRE_API_URL=http://127.0.0.1:1",
        "RUNWIRE_API_KEY=tr_dev_sk_a",
    ]
    assert shlex.split(trigger) == [
        "bin/runwire", "trigger", "it's", '{"a": "b\'c"}', "--follow",
    ]  # fmt: skip
    assert shlex.split(curl)[1] == "$RUNWIRE_API_URL/api/v1/tasks/it%27s/trigger"
    assert all("\n" not in line for line in (export, trigger, curl))


def test_a_task_without_a_payload_gets_none() -> None:
    _, trigger, curl = lines_to_try(_running(Example("tick", None)), "runwire")
    assert trigger == "runwire trigger tick --follow"
    assert curl.endswith("--data '{}'")


def test_without_a_task_the_first_line_still_helps() -> None:
    assert len(lines_to_try(_running(None), "runwire")) == 2


def test_the_program_is_named_so_that_a_shell_in_this_folder_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    at = tmp_path / "my bin" / "runwire"
    at.parent.mkdir()
    at.touch(mode=0o755)
    assert program("my bin/runwire", str(at)) == "'my bin/runwire'"  # typed so, as by make
    assert program(str(at), str(at)) == "runwire"  # found by PATH
    assert program(str(at), None) == "'my bin/runwire'"
    assert program("/somewhere/cli.py", None) == f"{sys.executable} -m runwire_realtime.cli"
