"""The documentation says what the code does: parts made from it are current, names exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

import pytest

import runwire
from docs import generate
from runwire.wire import CloseCode, ErrorCode, GapReason
from runwire_engine.settings import EngineSettings
from runwire_realtime.settings import ServerSettings

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "engine" / "README.md",
        ROOT / "realtime" / "README.md",
        ROOT / "clients" / "README.md",
        ROOT / "clients" / "typescript" / "README.md",
    ]
)
DESIGN = sorted((ROOT / "docs" / "design").glob("*.md"))
REFERENCE = ROOT / "docs" / "reference"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_VARIABLE = re.compile(r"\bRUNWIRE_[A-Z][A-Z_]*[A-Z]\b")
# Where a variable may be read besides the settings models.
_SOURCES = [
    *(ROOT / "engine").rglob("*.py"),
    *(ROOT / "realtime").rglob("*.py"),
    *(ROOT / "clients" / "python").rglob("*.py"),
    *(ROOT / "tests").rglob("*.py"),
]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=_name)


@pytest.mark.parametrize("page", generate.PAGES, ids=_name)
def test_what_is_made_from_the_code_is_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert generate.written(text) == text, "run: python -m docs.generate"


def test_every_operation_has_its_section() -> None:
    described = {
        operation.name for name in generate.GROUPS for operation in generate.group(name).OPERATIONS
    }
    assert described == {operation.name for operation in generate.operations()}
    page = (REFERENCE / "http-api.md").read_text(encoding="utf-8")
    assert all(f"<!-- generated: routes-{name} -->" in page for name in generate.GROUPS)


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(_without_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in _anchors(target), f"{link}: there is no such heading"


@pages
def test_every_python_block_compiles(page: Path) -> None:
    for language, code in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(code, _name(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pages
def test_every_variable_named_is_read_somewhere(page: Path) -> None:
    named = set(_VARIABLE.findall(page.read_text(encoding="utf-8")))
    assert named <= _variables()


@pages
def test_every_command_and_option_named_exists(page: Path) -> None:
    commands = dict(generate.commands())
    for words in _command_lines(page):
        found = [name for name in commands if _begins(words, name.split())]
        assert found, f"there is no command {' '.join(words)}"
        names = {"--help"}
        for parameter in commands[max(found, key=len)].params:
            names |= {*parameter.opts, *parameter.secondary_opts}
        options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        assert set(options) <= names, " ".join(words)


@pages
def test_every_make_target_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"(?:^\$ |`)make ([a-z]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


@pages
def test_every_test_that_is_named_exists(page: Path) -> None:
    for file, name in _TEST.findall(page.read_text(encoding="utf-8")):
        source = (ROOT / file).read_text(encoding="utf-8")
        # A function, or the test case of a state machine.
        there = rf"^(?:(?:async )?def {name}\(|{name} = \w+\.TestCase$)"
        assert re.search(there, source, re.MULTILINE), f"{file}::{name}"


@pytest.mark.parametrize("page", DESIGN, ids=_name)
def test_every_invariant_names_a_test(page: Path) -> None:
    invariants = _section(page.read_text(encoding="utf-8"), "Invariants")
    for number, invariant in enumerate(_numbered(invariants), start=1):
        assert _TEST.search(invariant), f"invariant {number} names no test"


def test_every_fault_has_its_test_and_its_result() -> None:
    text = (ROOT / "docs" / "design" / "delivery.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert {int(row[1]) for row in rows} == {*range(1, 50), *range(57, 62)}
    assert [row[1:3] for row in rows if not _TEST.search(row[4])] == []
    assert [row[1:3] for row in rows if len(row) != 7 or not row[5].strip()] == []


def test_the_protocol_page_has_every_message_and_code() -> None:
    text = (REFERENCE / "protocol.md").read_text(encoding="utf-8")
    samples = {file.stem for file in (ROOT / "tests" / "wire").glob("*.json")}
    messages = {name for name in samples if "_" not in name}
    messages -= {"connection", "metadata", "subscription"}
    assert {name for name in messages if not re.search(rf"`{name}\b", text)} == set()
    for code in CloseCode:
        assert f"| {code.value} |" in text
    for word in (*ErrorCode, *GapReason):
        assert f"`{word}`" in text
    listed = {int(code) for code in re.findall(r"^\| (4\d\d\d) \|", text, re.MULTILINE)}
    assert listed == {code.value for code in CloseCode}


def test_every_public_name_is_in_the_reference_of_the_python_package() -> None:
    pages = ("python-client.md", "tasks.md")
    text = "\n".join((REFERENCE / page).read_text(encoding="utf-8") for page in pages)
    names = set(runwire.__all__)
    modules = ("auth", "batch", "locals", "logger", "metadata", "retry", "runs", "streams", "tasks")
    for module in (*modules, "sync"):
        names |= set(import_module(f"runwire.{module}").__all__)
    # The classes behind the modules' functions, and names that only annotations need.
    names -= {"Auth", "Batches", "Runs", "Streams", "Tasks", "SyncStreams", "SyncTask", "SyncPipe"}
    names -= {"DEFAULT_KEY", "Pipe"}
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()


def test_every_exported_name_is_in_the_reference_of_the_typescript_package() -> None:
    text = (REFERENCE / "typescript-client.md").read_text(encoding="utf-8")
    index = ROOT / "clients" / "typescript" / "client" / "src" / "index.ts"
    exported = re.findall(r"export (?:type )?\{(.*?)\}", index.read_text("utf-8"), re.DOTALL)
    names = {name for group in exported for name in re.findall(r"\b(?!type\b)\w+", group)}
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()


@pytest.mark.parametrize(
    ("readme", "folder", "kinds"),
    [
        ("engine/README.md", "engine/runwire_engine", ("*.py",)),
        ("realtime/README.md", "realtime/runwire_realtime", ("*.py",)),
        ("clients/README.md", "clients/python/runwire", ("*.py",)),
        ("clients/README.md", "clients/typescript/dashboard/src", ("*.ts", "*.tsx")),
        ("clients/typescript/README.md", "clients/typescript/client/src", ("*.ts",)),
    ],
)
def test_a_parts_readme_names_every_module(
    readme: str, folder: str, kinds: tuple[str, ...]
) -> None:
    named = set(re.findall(r"[`/]([\w-]+\.\w+)", (ROOT / readme).read_text(encoding="utf-8")))
    there = {file.name for kind in kinds for file in (ROOT / folder).glob(kind)}
    assert there - {"__init__.py", "index.ts"} <= named


def test_the_documents_name_nothing_outside_of_the_project() -> None:
    for page in PAGES:
        assert "/work/" not in page.read_text(encoding="utf-8"), _name(page)


def _without_code(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))


def _anchors(page: Path) -> set[str]:
    if page.suffix != ".md":
        return set()
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _variables() -> set[str]:
    models = (ServerSettings, EngineSettings)
    known = {generate.variable(name) for model in models for name in model.model_fields}
    for source in _SOURCES:
        known |= set(re.findall(r'"(RUNWIRE_[A-Z_]+)"', source.read_text(encoding="utf-8")))
    return known


def _command_lines(page: Path) -> Iterator[list[str]]:
    text = page.read_text(encoding="utf-8")
    lines = [
        line.removeprefix("$ ")
        for language, block in _FENCE.findall(text)
        if language == "console"
        for line in cast(str, block).splitlines()
        if line.startswith("$ ")
    ]
    lines += re.findall(r"`(runwire [a-z][^`\n|…]*)`", _FENCE.sub("", text))
    for line in lines:
        if not re.search(r"(?:^|[ (])runwire [a-z]", line):
            continue
        words = shlex.split(line.partition("  #")[0].replace("$(", " ").replace(")", " "))
        while words and "=" in words[0]:
            words = words[1:]
        yield words[words.index("runwire") :]


def _begins(words: list[str], name: list[str]) -> bool:
    """Say whether a line calls a command, or names the group it is in."""
    return words[: len(name)] == name or (len(words) < len(name) and name[: len(words)] == words)


def _section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def _numbered(text: str) -> list[str]:
    return re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]
