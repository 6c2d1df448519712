"""The load generator, `load/*.c`: compiled once, run with one core of its own, and what it counted.

It opens the sockets, publishes events that each carry their stream, their number and when they were
published, and checks every number of every stream on every socket. For our own messages the `seq`
of each chunks message is checked as well. An event that is lost, doubled or out of its order makes
`run` raise. Where its share of its core reaches LIMIT, it may be what limits a figure: tables mark
such figures with †.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from tests.benchmarks.cores import REST, SERVER_CORES, cores
from tests.support.processes import CHECKOUT

SOURCES = CHECKOUT / "tests" / "benchmarks" / "load"
BENCH = CHECKOUT / ".runwire" / "bench"
PEERS_PYTHON = CHECKOUT / ".runwire" / "peers" / "bin" / "python"
LIMIT = 0.9
# An event is at least as long as what stands in it: see EVENT_FORMAT in load.h.
EVENT_SIZE = 200


class CountingError(AssertionError):
    """A server lost, doubled or reordered events; `counted` has how many."""

    def __init__(self, counted: "Counted", wanted: int) -> None:
        super().__init__(
            f"{counted.received} of {wanted} events: {counted.missing} missing,"
            f" {counted.again} again, {counted.wrong_seq} under a wrong seq"
        )
        self.counted = counted


class NoCompilerError(RuntimeError):
    """There is no C compiler, neither the system's nor one in the peers' environment."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to do; times are in seconds."""

    port: int
    sockets: int = 1
    # Sockets opened together, before the next ones.
    at_once: int = 50
    # A websocket, or with `raw` whatever TCP brings (RESP, NATS): its bytes are scanned as well.
    raw: bool = False
    path: str = "/"
    subprotocol: str = ""
    # Each socket's first messages; {i} becomes its number.
    hellos: Sequence[str] = ()
    # A socket counts as opened once these bytes (at most 63) have come; at once without them.
    ready: str = ""
    # `fd:N`, `ws:PATH` or `tcp:PORT`, and there what to say first, and what stands around an event;
    # {s} becomes the stream's number in four digits.
    publish: str = ""
    publish_hello: str = ""
    prefix: str = ""
    suffix: str = ""
    # Streams take turns; every socket gets all of them.
    streams: int = 1
    size: int = EVENT_SIZE
    events: int = 0
    # So many more before, which are not measured.
    warm: int = 0
    # So many come by themselves: nothing is published for them.
    expect: int = 0
    # The number the first event of each stream has.
    first: int = 0
    # Either so many under way, on average over the sockets, or so many a second.
    window: int = 0
    rate: float = 0
    # Give up after this long.
    seconds: float = 60
    check_seq: bool = False
    # Processes whose CPU time is told.
    servers: Sequence[int] = field(default_factory=tuple[int, ...])

    def arguments(self) -> list[str]:
        """Return the generator's command line."""
        told: Mapping[str, object] = {
            "port": self.port,
            "sockets": self.sockets,
            "at-once": self.at_once,
            "path": self.path,
            "subprotocol": self.subprotocol,
            "ready": self.ready,
            "publish": self.publish,
            "publish-hello": self.publish_hello,
            "prefix": self.prefix,
            "suffix": self.suffix,
            "streams": self.streams,
            "size": self.size,
            "events": self.events,
            "warm": self.warm,
            "expect": self.expect,
            "first": self.first,
            "window": self.window,
            "rate": self.rate,
            "seconds": self.seconds,
        }
        words = [word for name, value in told.items() for word in (f"--{name}", str(value))]
        for name, values in (("hello", self.hellos), ("server", self.servers)):
            words += [word for value in values for word in (f"--{name}", str(value))]
        flags = {"raw": self.raw, "check-seq": self.check_seq}
        return [*words, *(f"--{name}" for name, value in flags.items() if value)]


@dataclass(frozen=True)
class Counted:
    """What came. Latencies are in milliseconds, from handing an event over until it was read."""

    received: int
    frames: int
    missing: int
    again: int
    wrong_seq: int
    seconds: float
    generator_cpu: float  # share of its core
    server_cpu_seconds: float
    p50: float
    p99: float
    max: float
    late: float  # the most by which an event of a rate was published too late
    ready_p50: float  # from opening a batch of sockets until one of them was ready
    ready_max: float
    bytes: int  # as they came from the sockets, frames' heads included
    busy: Sequence[float]  # share of each core, whoever used it

    @property
    def per_second(self) -> float:
        return self.received / self.seconds

    @property
    def server_cpu(self) -> float:
        """Return the servers' share of one core."""
        return self.server_cpu_seconds / self.seconds

    @property
    def per_server_second(self) -> float:
        """Return events delivered per second of the servers' CPU time."""
        return self.received / max(self.server_cpu_seconds, 0.01)

    @property
    def other_cores(self) -> float:
        """Return the share that is used of the cores beside the server's: generator and all else.

        Near 1, with a server that has time left, what feeds the server is what limits a figure.
        """
        return max((self.busy[core] for core in REST if core < len(self.busy)), default=0)

    @property
    def disturbed(self) -> float:
        """Return the share of the server's core that was used by others of this machine."""
        return sum(self.busy[core] for core in SERVER_CORES) - self.server_cpu

    @property
    def usage(self) -> Mapping[str, float]:
        """Return who was busy, as figures of a table."""
        return {
            "server": self.server_cpu,
            "generator": self.generator_cpu,
            "other": self.other_cores,
            "disturbed": self.disturbed,
        }

    @property
    def is_limit(self) -> bool:
        """Tell whether the generator may be what limited this figure."""
        return self.generator_cpu >= LIMIT


@cache
def compiled() -> Path:
    """Compile the generator, unless it is newer than its sources. Raises NoCompilerError."""
    program = BENCH / "load"
    newest = max(source.stat().st_mtime for source in SOURCES.iterdir())
    if program.exists() and program.stat().st_mtime >= newest:
        return program
    BENCH.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=BENCH, prefix="load-", delete=False) as made:
        pass  # two processes may compile at once: each takes a name of its own
    command = [*_compiler(), "-O2", "-Wall", "-Wextra", "-o", made.name]
    subprocess.run([*command, *map(str, sorted(SOURCES.glob("*.c")))], check=True)
    return Path(made.name).rename(program)


def _compiler() -> list[str]:
    if found := shutil.which("cc"):
        return [found]
    if PEERS_PYTHON.exists():
        zig = [str(PEERS_PYTHON), "-m", "ziglang"]
        if subprocess.run([*zig, "version"], capture_output=True, check=False).returncode == 0:
            return [*zig, "cc"]
    raise NoCompilerError("no `cc` here, and no ziglang in .runwire/peers: run `make bench`")


def run(
    load: Load, *, pass_fds: Sequence[int] = (), once_ready: Callable[[], object] | None = None
) -> Counted:
    """Do it, on a core of its own. Raises CountingError; RuntimeError with what else went wrong.

    With `once_ready` the generator waits, all sockets open, until that has returned.
    """
    command = [str(compiled()), *load.arguments()]
    if once_ready is not None:
        command.append("--hold")
    with cores(REST):
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            if process.stdout.readline() and once_ready is not None:
                once_ready()
            output, errors = process.communicate(timeout=2 * load.seconds + 30)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise RuntimeError(errors.strip() or f"the generator ended with {process.returncode}")
    counted = Counted(**json.loads(output))
    wanted = (load.events + load.expect) * load.sockets
    faults = counted.missing + counted.again + counted.wrong_seq
    if counted.received != wanted or faults:
        raise CountingError(counted, wanted)
    return counted
