"""Append → socket: milliseconds from handing a chunk to the writer until one socket has it.

Ours appends through the engine in a process of its own; the chunk is durable before it is sent. The
peer is Node `ws` on LISTEN: one transaction per chunk with an insert and a NOTIFY that carries it.
Both writers are fed by the same pipe, and the same socket reader takes the time.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import orjson

from runwire.wire import PROTOCOL, SOCKET_PATH, JsonObject
from tests.benchmarks.sockets import Stopwatch, await_text, open_socket, percentile, text_frame
from tests.benchmarks.stand import PEERS, SERVER_CORES, Stand, feed, first_line, program

SECONDS = 5
PADDING = "x" * 50


@dataclass(frozen=True)
class Measured:
    """One round, in milliseconds."""

    p50: float
    p99: float


def ours(
    stand: Stand, per_second: int, writer_for: Callable[[], tuple[str, list[str]]]
) -> Measured:
    """Append to one stream of a run, watched by one socket."""
    run_id, command = writer_for()
    with (
        program(command, stand.environment, SERVER_CORES) as writer,
        contextlib.closing(open_socket(stand.port, SOCKET_PATH, PROTOCOL)) as raw,
    ):
        if first_line(writer) != "ready":
            raise RuntimeError("the appender did not start")
        subscribe: JsonObject = {
            "type": "subscribe",
            "sub": "1",
            "to": {"run": run_id},
            "fields": [],
            "streams": {"*": {"from": "start"}},
        }
        raw.sendall(text_frame(orjson.dumps({"type": "auth", "token": stand.key})))
        raw.sendall(text_frame(orjson.dumps(subscribe)))
        await_text(raw, b'"live"')
        return _timed(raw, feed(writer), per_second)


def node(stand: Stand, per_second: int) -> Measured:
    """The same through Node."""
    command = ["node", str(PEERS / "listen_hub.mjs"), _node_dsn(stand.dsn)]
    with program(command, {}, SERVER_CORES) as hub:
        port = int(first_line(hub).split()[1])
        with contextlib.closing(open_socket(port, "/", None)) as raw:
            return _timed(raw, feed(hub), per_second)


def _node_dsn(dsn: str) -> str:
    """Return the connection string in the form that node-postgres reads unix sockets from."""
    head, _, host = dsn.partition("?host=")
    user, _, database = head.removeprefix("postgresql://").partition("@/")
    return f"socket://{user}@{host.replace('%2F', '/')}/?db={database}" if host else dsn


def _timed(raw: socket.socket, lines: IO[str], per_second: int) -> Measured:
    warm = Stopwatch(raw)
    _feed(lines, 50, 100)
    warm.read(50, 30)
    watch = Stopwatch(raw)
    events = per_second * SECONDS
    feeder = threading.Thread(target=_feed, args=(lines, events, per_second))
    feeder.start()
    try:
        watch.read(events, 30)
    finally:
        feeder.join()
    return Measured(percentile(watch.latencies, 0.5), percentile(watch.latencies, 0.99))


def _feed(lines: IO[str], events: int, per_second: int) -> None:
    start = time.monotonic()
    for number in range(events):
        wait = start + number / per_second - time.monotonic()
        if wait > 0:
            time.sleep(wait)  # the load is so many events a second: here time is what is wanted
        lines.write(f"{PADDING}~{time.monotonic_ns()}~\n")
        lines.flush()
