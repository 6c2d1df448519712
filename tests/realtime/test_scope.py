"""What scopes parse to and what grants allow: tables, no loop."""

import pytest

from runwire_realtime.errors import ScopeError
from runwire_realtime.scope import MAX_SCOPES, Grant, Scope, Visibility, parse_scope, parse_scopes


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("read:runs", Scope("read", "runs")),
        ("read:runs:run_1", Scope("read", "runs", "run_1")),
        # Only the first two colons split.
        ("read:runs:a:b", Scope("read", "runs", "a:b")),
        ("read:tags:user:42", Scope("read", "tags", "user:42")),
        ("read:tags::", Scope("read", "tags", ":")),
        # Not a glob: a tag may be called *.
        ("read:tags:*", Scope("read", "tags", "*")),
        ("batchTrigger:tasks:a", Scope("batchTrigger", "tasks", "a")),
        ("write:inputStreams:run_1", Scope("write", "inputStreams", "run_1")),
        ("read:tags:" + "t" * 128, Scope("read", "tags", "t" * 128)),
        ("read:tags:ärger 🌊", Scope("read", "tags", "ärger 🌊")),
    ],
)
def test_a_scope_of_the_grammar_parses_and_prints_as_it_was(text: str, scope: Scope) -> None:
    assert parse_scope(text) == scope
    assert str(scope) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "read",
        "read:",
        "read:runs:",
        "read:*",
        "*:runs",
        "*",
        "admin",
        "admin:x",
        "READ:runs",
        "Read:runs",
        "read:Runs",
        " read:runs",
        "read:runs ",
        "read :runs",
        "delete:runs",
        "read:apiKeys",
        "read:all",
        "read:runs\x00",
        "read:runs:a\x00b",
        "read:runs:a\nb",
        "read:tags:\x7f",
        "read:tags:\x9f",
        "read:tags:\ud800",
        "read:tags:" + "t" * 129,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ScopeError):
        parse_scope(text)


def test_one_bad_scope_refuses_all() -> None:
    with pytest.raises(ScopeError, match="read:nothing"):
        parse_scopes(["read:runs:run_1", "read:nothing"])


def test_too_many_scopes_are_refused() -> None:
    assert len(parse_scopes(["read:runs"] * MAX_SCOPES)) == MAX_SCOPES
    with pytest.raises(ScopeError):
        parse_scopes(["read:runs"] * 10_000)


def _grant(*scopes: str) -> Grant:
    return Grant(environment_id=1, scopes=frozenset(parse_scopes(scopes)))


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("read:runs", True),
        ("read:tasks", True),
        ("read:tags", True),
        ("read:batch", True),
        ("read:runs:run_1", True),
        ("read:tasks:story", True),
        ("read:tags:user:1", True),
        ("read:tags:b", True),
        ("read:batch:batch_1", True),
        # Prefix and extension twins.
        ("read:runs:run_12", False),
        ("read:runs:run_", False),
        ("read:tasks:stor", False),
        ("read:tags:user", False),
        ("read:tags:user:11", False),
        # Another form of the same letters, another case, a would-be glob.
        ("read:tags:B", False),
        ("read:runs:*", False),
        ("write:runs:run_1", False),
        ("trigger:tasks:story", False),
        ("read:streams:run_1", False),
    ],
)
def test_a_run_is_read_by_any_one_exact_match(scope: str, allowed: bool) -> None:
    grant = _grant(scope)
    assert grant.may_read_run("run_1", "story", ["user:1", "b"], ["batch_1"]) is allowed
    written = _grant(scope.replace("read", "write", 1) if allowed else scope)
    expected = allowed or scope == "write:runs:run_1"
    assert written.may_write_run("run_1", "story", ["user:1", "b"], ["batch_1"]) is expected


def test_twins_in_unicode_are_two_tags() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    grant = _grant(f"read:tags:{composed}")
    assert grant.may_read_run("run_1", "t", [composed], [])
    assert not grant.may_read_run("run_1", "t", [decomposed], [])


def test_a_type_scope_needs_a_thing_of_that_type() -> None:
    assert not _grant("read:tags").may_read_run("run_1", "t", [], [])
    assert not _grant("read:batch").may_read_run("run_1", "t", [], [])


@pytest.mark.parametrize(
    ("scope", "feed", "batch", "runs"),
    [
        ("read:runs", True, True, True),
        ("read:tags", True, False, False),
        ("read:tags:a", True, False, False),
        ("read:tags:c", False, False, False),
        ("read:batch", False, True, False),
        ("read:batch:batch_1", False, True, False),
        ("read:batch:batch_12", False, False, False),
        ("read:runs:run_1", False, False, False),
        ("read:tasks:t", False, False, False),
    ],
)
def test_feeds_open_to_their_own_scopes(scope: str, feed: bool, batch: bool, runs: bool) -> None:
    grant = _grant(scope)
    assert grant.may_read_tag_feed(["a", "b"]) is feed
    assert grant.may_read_batch("batch_1") is batch
    assert grant.may_read_runs() is runs


def test_triggering_and_batching_are_apart() -> None:
    single, several = _grant("trigger:tasks:a"), _grant("batchTrigger:tasks:a")
    assert single.may_trigger("a") and not single.may_batch_trigger("a")
    assert several.may_batch_trigger("a") and not several.may_trigger("a")
    assert several.may_start_batches() and not single.may_start_batches()
    assert not single.may_trigger("b")
    assert _grant("trigger:tasks").may_trigger("anything")


def test_no_scopes_allow_nothing() -> None:
    grant = Grant(environment_id=1)
    assert not grant.may_read_runs()
    assert not grant.may_read_run("run_1", "t", ["a"], ["b"])
    assert not grant.may_trigger("t")


def test_an_api_key_may_do_everything() -> None:
    key = Grant(environment_id=1, api_key=True)
    assert key.may_read_runs() and key.may_read_batch("b") and key.may_read_tag_feed(["t"])
    assert key.may_write_run("run_1", "t", [], []) and key.may_trigger("t")
    assert key.may_batch_trigger("t") and key.may_start_batches()
    assert key.visibility() == Visibility(internal=True)


def test_visibility_is_equal_for_credentials_that_see_the_same() -> None:
    narrow = Grant(environment_id=1, fields=frozenset({"status"}), jti="a" * 16)
    other = Grant(environment_id=1, fields=frozenset({"status"}), jti="b" * 16)
    assert narrow.visibility() == other.visibility()
    assert hash(narrow.visibility()) == hash(other.visibility())
    assert narrow.visibility() != Grant(environment_id=1).visibility()


def test_a_log_and_input_are_for_keys_or_for_whom_they_are_named() -> None:
    for key in ("$log", "$input:approval"):
        assert not Grant(environment_id=1).may_read_stream(key)
        assert Grant(environment_id=1, api_key=True).may_read_stream(key)
        assert Grant(environment_id=1, internal=True).may_read_stream(key)
        assert Grant(environment_id=1, streams=frozenset({key})).may_read_stream(key)
        assert not Grant(environment_id=1, streams=frozenset({"text"})).may_read_stream(key)


def test_streams_narrow_what_may_be_read() -> None:
    assert Grant(environment_id=1).may_read_stream("anything")
    narrow = Grant(environment_id=1, streams=frozenset({"text"}))
    assert narrow.may_read_stream("text") and not narrow.may_read_stream("text2")
