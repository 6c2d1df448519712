"""One stream to 1 000 sockets, with a backlog: events delivered per second, against Node `ws`.

Ours is end to end: a writer in another process appends each event, it is committed to Postgres, and
the hub pushes it. The peer's publisher hands each event to the hub's memory over a socket; nothing
is stored. Both hubs have core 0 to themselves. At most BACKLOG events are under way.
"""

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import orjson

from runwire.wire import PROTOCOL, SOCKET_PATH
from tests.benchmarks.sockets import MARK, Swarm, await_text, open_socket, text_frame
from tests.benchmarks.stand import (
    PEERS,
    REST,
    SERVER_CORES,
    Stand,
    cpu_seconds,
    feed,
    first_line,
    program,
)

SOCKETS = 1000
AT_ONCE = 50  # sockets opened together, well under the hub's limit of strangers
BACKLOG = 32
EVENTS = 640
EVENT = "x" * (200 - len(MARK)) + MARK.decode()


@dataclass(frozen=True)
class Measured:
    """One round."""

    per_second: float
    server_cpu: float  # share of its core
    generator_cpu: float


def ours(stand: Stand, writer_for: Callable[[], tuple[str, list[str]]]) -> Measured:
    """Deliver EVENTS through a run's stream."""
    run_id, command = writer_for()
    swarm = Swarm()
    subscribe = orjson.dumps(
        {
            "type": "subscribe",
            "sub": "1",
            "to": {"run": run_id},
            "fields": [],
            "streams": {"events": {"from": "start"}},
        }
    )
    hello = orjson.dumps({"type": "auth", "token": stand.key})
    with program(command, stand.environment, REST) as writer:
        if first_line(writer) != "ready":
            raise RuntimeError("the appender did not start")
        for _ in range(SOCKETS // AT_ONCE):
            opened = [open_socket(stand.port, SOCKET_PATH, PROTOCOL) for _ in range(AT_ONCE)]
            for raw in opened:
                raw.sendall(text_frame(hello) + text_frame(subscribe))
            for raw in opened:
                await_text(raw, b'"live"')
                swarm.add(raw)
        lines = feed(writer)

        def publish() -> None:
            lines.write(f"{EVENT}\n")
            lines.flush()

        return _rounds(swarm, publish, stand.server)


def node() -> Measured:
    """Deliver EVENTS through Node `ws`, one send per socket and event, as it is usually written."""
    with program(["node", str(PEERS / "fanout_hub.mjs")], {}, SERVER_CORES) as hub:
        port = int(first_line(hub).split()[1])
        swarm = Swarm()
        for _ in range(SOCKETS):
            swarm.add(open_socket(port, "/", None))
        with contextlib.closing(open_socket(port, "/publish", None)) as publisher:
            frame = orjson.dumps(EVENT)
            return _rounds(swarm, lambda: publisher.sendall(text_frame(frame)), hub.pid)


def _rounds(swarm: Swarm, publish: Callable[[], None], server: int) -> Measured:
    with _closing(swarm):
        _deliver(swarm, publish, EVENTS // 10)  # warm
        cpu, own, start = cpu_seconds(server), time.process_time(), time.monotonic()
        _deliver(swarm, publish, EVENTS)
        took = time.monotonic() - start
        wanted = EVENTS // 10 + EVENTS
        wrong = [count for count in swarm.counts.values() if count != wanted]
        if wrong:
            raise AssertionError(f"{len(wrong)} sockets did not get each event once: {wrong[:3]}")
        return Measured(
            per_second=EVENTS * SOCKETS / took,
            server_cpu=(cpu_seconds(server) - cpu) / took,
            generator_cpu=(time.process_time() - own) / took,
        )


def _deliver(swarm: Swarm, publish: Callable[[], None], events: int) -> None:
    before = swarm.total
    for sent in range(events):
        # On average over the sockets; each socket's own count is checked at the end.
        while swarm.total - before < (sent - BACKLOG + 1) * SOCKETS:
            swarm.receive(0.05)
        publish()
    swarm.receive_until(before + events * SOCKETS, 60)


@contextlib.contextmanager
def _closing(swarm: Swarm) -> Generator[None]:
    try:
        yield
    finally:
        swarm.close()
