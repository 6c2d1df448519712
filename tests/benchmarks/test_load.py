"""The generator itself: it must notice every event that is lost, doubled or out of its order."""

import os
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pytest

from tests.benchmarks import generator
from tests.benchmarks.generator import Counted, CountingError, Load, NoCompilerError

SIZE = 60


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    try:
        generator.compiled()
    except NoCompilerError as missing:
        pytest.skip(str(missing))


def event(number: int, stream: int = 0) -> bytes:
    """Return an event as our hub would send it, in quotes."""
    stamp = f"#{stream:04}.{number:010}.{1:018}#".encode()
    return b'"%s%s"' % (b"x" * (SIZE - len(stamp)), stamp)


def chunks(seq: int, *numbers: int, stream: int = 0) -> bytes:
    data = b",".join(event(number, stream) for number in numbers)
    return b'{"type":"chunks","seq":%d,"data":[%s]}' % (seq, data)


def frame(*messages: bytes) -> bytes:
    """Return a server's text frame."""
    data = b"[%s]" % b",".join(messages)
    if len(data) < 126:
        return b"\x81" + bytes([len(data)]) + data
    return b"\x81\x7e" + len(data).to_bytes(2, "big") + data


@contextmanager
def serving(said: bytes, piece: int) -> Generator[int]:
    """Answer one upgrade and then say these bytes, in pieces."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                asked = b""
                while b"\r\n\r\n" not in asked:
                    asked += peer.recv(4096)
                peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
                for start in range(0, len(said), piece):
                    peer.sendall(said[start : start + piece])
                while peer.recv(4096):  # a pong; then the generator is gone
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def count(said: bytes, expect: int, *, streams: int = 1, piece: int = 1 << 16) -> Counted:
    with serving(said, piece) as port:
        load = Load(port=port, expect=expect, streams=streams, size=SIZE, check_seq=True, seconds=5)
        return generator.run(load)


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 16])
def test_events_are_counted_however_they_are_framed_joined_or_cut(piece: int) -> None:
    said = [
        frame(chunks(0, 0)),
        frame(chunks(1, 1, 2), chunks(0, 0, 1, stream=1)),
        b"\x89\x02hi",  # a ping
        frame(chunks(3, 3), b'{"type":"end","note":"# no event"}', chunks(2, 2, 3, stream=1)),
    ]
    counted = count(b"".join(said), 8, streams=2, piece=piece)
    # Counted until the last event is there: what closes its message may come later.
    assert 0 <= len(b"".join(said)) - counted.bytes <= len(b'"]}]')
    # Each core by itself, not all of them together.
    assert len(counted.busy) == os.cpu_count()


@pytest.mark.parametrize(
    ("said", "expect", "fault"),
    [
        ([chunks(0, 0, 1), chunks(3, 3, 4)], 4, "missing"),
        ([chunks(0, 0), chunks(0, 0, 1)], 3, "again"),
        ([chunks(0, 0), chunks(2, 2), chunks(1, 1)], 3, "again"),
        ([chunks(0, 0), chunks(2, 1)], 2, "wrong_seq"),
        ([chunks(0), chunks(0, 0)], 1, "wrong_seq"),
        ([chunks(0, 0), chunks(1, 2, 1)], 3, "again"),
    ],
    ids=["lost", "doubled", "reordered", "misnumbered", "empty", "swapped in a message"],
)
def test_a_fault_of_the_server_is_noticed(said: Sequence[bytes], expect: int, fault: str) -> None:
    with pytest.raises(CountingError) as raised:
        count(b"".join(map(frame, said)), expect)
    assert getattr(raised.value.counted, fault) > 0


def test_an_event_that_comes_twice_after_the_last_is_noticed() -> None:
    with pytest.raises(CountingError):
        count(frame(chunks(0, 0, 1), chunks(1, 1)), 2)


def test_a_stream_that_ends_early_is_not_made_up_for_by_another() -> None:
    with pytest.raises(CountingError) as raised:
        count(frame(chunks(0, 0, 1, 2), chunks(0, 0, stream=1)), 4, streams=2)
    assert raised.value.counted.missing == 1


def test_a_server_that_goes_away_is_told_as_such() -> None:
    with pytest.raises(RuntimeError, match="closed socket 0"):
        count(b"\x88\x02\x03\xe9", 1)
