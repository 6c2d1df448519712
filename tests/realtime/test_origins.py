"""Which pages and host names are answered: tables."""

import pytest

from runwire_realtime.origins import may_use_host, may_use_origin, own_origin

OWN = "http://127.0.0.1:8420"


@pytest.mark.parametrize(
    ("origin", "allowed", "answer"),
    [
        (OWN, (), True),
        ("https://good.example", ("https://good.example",), True),
        ("https://good.example", ("*",), True),
        ("http://localhost:3000", ("loopback",), True),
        ("https://[::1]:3000", ("loopback",), True),
        ("https://good.example", (), False),
        ("null", ("*",), False),
        ("null", (), False),
        ("https://good.example.evil.com", ("https://good.example",), False),
        ("https://evil-good.example", ("https://good.example",), False),
        ("https://good.example:8443", ("https://good.example",), False),
        ("http://good.example", ("https://good.example",), False),
        ("http://localhost.evil.com", ("loopback",), False),
        ("http://127.0.0.1.evil.com:80", ("loopback",), False),
        ("ftp://localhost", ("loopback",), False),
        ("http://127.0.0.1:8421", (), False),
        ("", (), False),
    ],
)
def test_an_origin_is_allowed_by_equality_only(
    origin: str, allowed: tuple[str, ...], answer: bool
) -> None:
    assert may_use_origin(origin, allowed, own=OWN) is answer


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("localhost", True),
        ("LOCALHOST:8420", True),
        ("[::1]:8420", True),
        ("127.0.0.1", True),
        ("rebound.example:8420", False),
        ("localhost.example", False),
        ("", False),
        ("[::1].example", False),
    ],
)
def test_a_loopback_server_answers_to_loopback_names_only(host: str, answer: bool) -> None:
    assert may_use_host(host, ("localhost", "127.0.0.1", "[::1]")) is answer
    assert may_use_host(host, ("*",))


def test_the_own_origin_is_what_the_browser_would_say() -> None:
    assert own_origin("http", "127.0.0.1:8420") == OWN
