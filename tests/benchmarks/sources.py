"""Where events go in and where they come out, for each alternative: a load to be given its shape.

Ours is end to end: a writer in a process of its own appends each event to a run's stream, it is
committed to Postgres, and the server pushes it. What a peer does is said at its function.
"""

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeAlias

import orjson

from runwire.wire import PROTOCOL, SOCKET_PATH, JsonObject
from tests.benchmarks import generator
from tests.benchmarks.cores import REST, SERVER_CORES
from tests.benchmarks.environment import nats_server, node, python, redis_server
from tests.benchmarks.generator import EVENT_SIZE, Counted, Load
from tests.benchmarks.program import input_of, next_line, program
from tests.benchmarks.stand import Stand, serving
from tests.benchmarks.worker import relaying


@dataclass(frozen=True)
class Source:
    """One running alternative."""

    load: Load
    pass_fds: Sequence[int] = ()
    # Ours: which run owns the streams.
    run_id: str = ""

    def run(self, shape: Callable[[Load], Load]) -> Counted:
        """Publish and check events in this shape. Raises CountingError."""
        return generator.run(shape(self.load), pass_fds=self.pass_fds)


# Starts an alternative for the length of a block.
Opened: TypeAlias = Callable[[], AbstractContextManager[Source]]


@contextlib.contextmanager
def ours(
    stand: Stand,
    streams: int = 1,
    *,
    writer_on: set[int] = REST,
    appender: Sequence[str] = (sys.executable, "-m", "tests.benchmarks.appender"),
) -> Generator[Source]:
    """Append to streams of a new run, and read all of them through the running server."""
    run_id = stand.new_run()
    with program([*appender, run_id], stand.environment, writer_on) as writer:
        if next_line(writer) != "ready":
            raise RuntimeError("the appender did not start")
        servers = [stand.server, *([writer.pid] if writer_on == SERVER_CORES else [])]
        yield _fed(stand, run_id, streams, input_of(writer).fileno(), servers)


@contextlib.contextmanager
def relayed(stand: Stand, streams: int) -> Generator[Source]:
    """Write to streams of a run from its own task, in a worker that has the server's core too."""
    with serving(stand) as server, relaying(server, SERVER_CORES) as (run_id, pipe):
        yield _fed(server, run_id, streams, pipe, [server.server])


def _fed(stand: Stand, run_id: str, streams: int, pipe: int, servers: Sequence[int]) -> Source:
    """Return what reads a run's streams and publishes into a pipe of its writer."""
    load = Load(
        port=stand.port,
        path=SOCKET_PATH,
        subprotocol=PROTOCOL,
        hellos=hellos(stand, run_id, streams),
        streams=streams,
        ready='"live"',
        publish=f"fd:{pipe}",
        suffix="\n",
        check_seq=True,
        servers=servers,
    )
    return Source(load, [pipe], run_id)


@contextlib.contextmanager
def served(
    stand: Stand, streams: int = 1, *, is_plain: bool = False, writer_on: set[int] = REST
) -> Generator[Source]:
    """Do the same with a server of its own."""
    with (
        serving(stand, is_plain=is_plain) as server,
        ours(server, streams, writer_on=writer_on) as source,
    ):
        yield source


@contextlib.contextmanager
def watched(stand: Stand, size: int) -> Generator[Source]:
    """Append to a run's metadata, a document of so many bytes; all sockets follow the run."""
    run_id = stand.new_run()
    command = [sys.executable, "-m", "tests.benchmarks.metadata_writer", run_id, str(size)]
    with (
        serving(stand) as server,
        program(command, stand.environment, REST) as writer,
    ):
        if next_line(writer) != "ready":
            raise RuntimeError("the writer of metadata did not start")
        pipe = input_of(writer).fileno()
        load = Load(
            port=server.port,
            path=SOCKET_PATH,
            subprotocol=PROTOCOL,
            hellos=_hellos(stand, {"to": {"run": run_id}, "fields": ["metadata"]}),
            ready='"live"',
            publish=f"fd:{pipe}",
            suffix="\n",
            servers=[server.server],
        )
        yield Source(load, [pipe], run_id)


def hellos(stand: Stand, run_id: str, streams: int, start: int | str = "start") -> list[str]:
    """Return what a socket says that reads these streams of a run, and nothing else of it."""
    wanted: JsonObject = {f"{stream:04}": {"from": start} for stream in range(streams)}
    return _hellos(stand, {"to": {"run": run_id}, "fields": [], "streams": wanted})


def _hellos(stand: Stand, subscription: JsonObject) -> list[str]:
    subscribe: JsonObject = {"type": "subscribe", "sub": "1", **subscription}
    auth: JsonObject = {"type": "auth", "token": stand.key}
    return [orjson.dumps(message).decode() for message in (auth, subscribe)]


@contextlib.contextmanager
def node_hub(script: str) -> Generator[Source]:
    """Publish to a Node hub's memory over a socket of its own; nothing is stored."""
    with program(node(script), {}, SERVER_CORES) as hub:
        port = int(next_line(hub).split()[1])
        load = Load(port=port, publish="ws:/publish", prefix='"', suffix='"', servers=[hub.pid])
        yield Source(load)


@contextlib.contextmanager
def nats() -> Generator[Source]:
    """Publish to NATS over TCP, its fastest way in; subscribers use its websocket listener."""
    hello = 'CONNECT {"verbose":false,"pedantic":false}\r\n'
    with nats_server() as it:
        yield Source(
            Load(
                port=it.websocket_port,
                hellos=[f"{hello}SUB e 1\r\nPING\r\n"],
                ready="PONG",
                publish=f"tcp:{it.port}",
                publish_hello=hello,
                prefix=f"PUB e {EVENT_SIZE}\r\n",
                suffix="\r\n",
                servers=[it.pid],
            )
        )


@contextlib.contextmanager
def node_listen(stand: Stand, streams: int) -> Generator[Source]:
    """Append through Node into Postgres, one transaction with a NOTIFY for each chunk."""
    command = node("listen_hub.mjs", _node_dsn(stand.dsn))
    with program(command, {}, SERVER_CORES) as hub:
        port = int(next_line(hub).split()[1])
        pipe = input_of(hub).fileno()
        load = Load(
            port=port, publish=f"fd:{pipe}", suffix="\n", streams=streams, servers=[hub.pid]
        )
        yield Source(load, [pipe])


def _node_dsn(dsn: str) -> str:
    """Return the connection string in the form that node-postgres reads unix sockets from."""
    head, _, host = dsn.partition("?host=")
    user, _, database = head.removeprefix("postgresql://").partition("@/")
    return f"socket://{user}@{host.replace('%2F', '/')}/?db={database}" if host else dsn


@contextlib.contextmanager
def redis_streams(streams: int, *, is_durable: bool = False) -> Generator[Source]:
    """Append with XADD, pipelined straight from the generator; a Node hub reads and sends."""
    with _redis_hub(streams, is_durable=is_durable) as (load, port):
        yield Source(
            replace(
                load,
                publish=f"tcp:{port}",
                # XADD e:0007 * d "…", in Redis's protocol.
                prefix="*5\r\n$4\r\nXADD\r\n$6\r\ne:{s}\r\n$1\r\n*\r\n$1\r\nd\r\n"
                f'${EVENT_SIZE + 2}\r\n"',
                suffix='"\r\n',
            )
        )


@contextlib.contextmanager
def redis_written(streams: int) -> Generator[Source]:
    """Do the same from a Python process, in which each stream waits for its last XADD."""
    with (
        _redis_hub(streams) as (load, port),
        program(python("redis_writer", str(port)), {}, REST) as writer,
    ):
        if next_line(writer) != "ready":
            raise RuntimeError("the writer to Redis did not start")
        pipe = input_of(writer).fileno()
        yield Source(replace(load, publish=f"fd:{pipe}", suffix="\n"), [pipe])


@contextlib.contextmanager
def _redis_hub(streams: int, *, is_durable: bool = False) -> Generator[tuple[Load, int]]:
    with redis_server(REST, is_durable=is_durable) as port:
        command = node("redis_streams_hub.mjs", str(port), str(streams))
        with program(command, {}, SERVER_CORES) as hub:
            listening = int(next_line(hub).split()[1])
            yield Load(port=listening, streams=streams, servers=[hub.pid]), port
