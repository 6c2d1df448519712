"""What of a run is shown to whom."""

from typing import Any

import orjson
import pytest

from runwire.wire import JsonObject
from runwire_engine.followed import FollowedRun
from runwire_engine.run_row import RunRow
from runwire_engine.states import RunStatus
from runwire_realtime.run_view import (
    NEVER_SKIPPED,
    View,
    flags,
    is_final,
    patch_bytes,
    run_bytes,
    run_json,
    view_of,
)
from runwire_realtime.scope import Visibility
from tests.support.hub_world import new_row

KEY = Visibility(internal=True)
PUBLIC = Visibility(internal=False)
ERROR = '{"name":"ValueError","message":"no","stackTrace":"File secret.py","code":"TASK_ERROR"}'


def row(**changes: Any) -> RunRow:
    base = new_row("run_a0000000", ("t",))._replace(error=ERROR, worker_id="worker_1")
    return base._replace(**changes)


def shown(run: RunRow, visibility: Visibility, **sizes: int) -> JsonObject:
    view = view_of(visibility, [None], is_feed=False)
    document: JsonObject = orjson.loads(run_bytes(FollowedRun(run, sizes), view))
    return document


def test_tracebacks_and_workers_are_for_keys_only() -> None:
    assert shown(row(), KEY)["error"]["stackTrace"] and shown(row(), KEY)["workerId"]
    public = shown(row(), PUBLIC)
    assert "workerId" not in public
    assert public["error"] == {"name": "ValueError", "message": "no", "code": "TASK_ERROR"}


def test_both_ways_of_writing_a_run_say_the_same() -> None:
    run = row(payload='{"a": [1, null]}', output='"x"', metadata='{"m":{}}')
    for visibility in (KEY, PUBLIC, Visibility(internal=False, fields=frozenset({"tags"}))):
        assert shown(run, visibility) == run_json(run, visibility)


def test_a_narrow_token_sees_its_fields_and_those_never_left_out() -> None:
    narrow = Visibility(internal=False, fields=frozenset({"tags", "payload"}))
    assert set(shown(row(), narrow)) == NEVER_SKIPPED | {"tags", "payload"}
    asked = view_of(narrow, [frozenset({"output"}), frozenset({"tags"})], is_feed=False)
    assert asked.fields == frozenset({"tags"})
    assert view_of(narrow, [frozenset({"tags"}), None], is_feed=False).fields == narrow.fields


def test_what_is_not_there_is_absent() -> None:
    assert None not in shown(row(error=None, worker_id=None), KEY).values()
    assert "output" not in shown(row(), KEY) and "concurrencyKey" not in shown(row(), KEY)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("application/json", '{"a": 1}', {"a": 1}),
        ("application/super+json", '{"json": [1], "meta": {}}', [1]),
        ("text/plain", 'plain "text"', 'plain "text"'),
    ],
)
def test_a_payload_is_shown_as_its_type_says(kind: str, text: str, value: object) -> None:
    run = row(payload=text, payload_type=kind)
    assert shown(run, KEY)["payload"] == run_json(run, KEY)["payload"] == value


def test_large_bodies_stand_by_reference() -> None:
    run = row(output=orjson.dumps("x" * 20_000).decode())
    feed = view_of(KEY, [None], is_feed=True)
    document = orjson.loads(run_bytes(FollowedRun(run, {}), feed))
    assert document["output"] == {"$large": {"bytes": 20_002}}
    unread = shown(row(payload=None), KEY, payload=5_000_000)
    assert unread["payload"] == {"$large": {"bytes": 5_000_000}}


def test_a_patch_shows_no_more_than_the_run() -> None:
    changes = {"status": "FAILED", "error": orjson.loads(ERROR), "workerId": "w", "output": 1}
    operation = {"type": "set", "key": "k", "value": 1}
    public = orjson.loads(patch_bytes("r", 1, 2, changes, View(False), [operation]))
    assert public["from"] == 1 and public["revision"] == 2 and public["metadata"] == [operation]
    assert "stackTrace" not in public["set"]["error"] and "workerId" not in public["set"]
    narrow = View(False, frozenset({"tags"}))
    told = orjson.loads(patch_bytes("r", 1, 2, changes, narrow, [operation]))
    assert told["set"] == {"status": "FAILED"} and "metadata" not in told


def test_flags_follow_the_status() -> None:
    for status in RunStatus:
        told = flags(status)
        groups = ("isQueued", "isExecuting", "isWaiting", "isCompleted")
        assert sum(told[name] for name in groups) == 1
        assert told["isCompleted"] == is_final(status)
        ends = ("isSuccess", "isFailed", "isCancelled")
        assert sum(told[name] for name in ends) == is_final(status)
