"""Log lines carry no secrets."""

import logging

from runwire_realtime.logs import RedactingFormatter, redact

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJl"
KEY = "tr_dev_sk_0123456789abcdefghijABCD"


def test_tokens_keys_and_passwords_are_replaced_wherever_they_stand() -> None:
    for text in (
        f"Authorization: Bearer {TOKEN}",
        f"authorization: bearer {KEY}",
        f"Sec-WebSocket-Protocol: runwire.v1, runwire.bearer.{TOKEN}",
        f"GET /x?token={TOKEN}",
        f'{{"apiKey":"{KEY}"}}',
        f"http://127.0.0.1:8420/#sign-in={TOKEN}",
        "postgresql://user:hunter2hunter2@db.example/runwire",
        "Authorization: Bearer my-own-fixed-key",
    ):
        line = redact(text)
        for secret in (TOKEN, KEY, "hunter2hunter2", "my-own-fixed-key"):
            assert secret not in line, line


def test_ordinary_lines_stay_as_they_are() -> None:
    line = "run run_0abc of task write-story failed: http://127.0.0.1:8420 answered 404"
    assert redact(line) == line


def test_a_traceback_names_places_and_classes_but_quotes_no_foreign_text() -> None:
    try:
        raise ValueError("canary in a foreign error")
    except ValueError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, __file__, 1, "it failed", None, (type(error), error, None)
        )
    line = RedactingFormatter().format(record)
    assert "ValueError" in line and "canary" not in line
