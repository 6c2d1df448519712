"""Where the peers are: a Python environment and npm packages of their own, made by `make bench`."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.cores import SERVER_CORES
from tests.benchmarks.program import program
from tests.support.processes import CHECKOUT, free_port

PEERS = CHECKOUT / "tests" / "benchmarks" / "peers"
_BIN = CHECKOUT / ".runwire" / "peers" / "bin"
# Where what is measured keeps its data.
DISK = CHECKOUT / ".runwire" / "benchmarks"


class UnavailableError(Exception):
    """A peer cannot be run here; the message says why, and what would help."""


@dataclass(frozen=True)
class NatsServer:
    port: int
    websocket_port: int
    pid: int


def node(script: str, *arguments: str) -> list[str]:
    """Return the command of a peer in Node. Raises UnavailableError."""
    if shutil.which("node") is None:
        raise UnavailableError("no Node here")
    # What npm writes last.
    if not (PEERS / "node_modules" / ".package-lock.json").exists():
        raise UnavailableError("its npm packages are not installed: run `make bench`")
    return ["node", str(PEERS / script), *arguments]


def python(script: str, *arguments: str) -> list[str]:
    """Return the command of a peer in Python, named after its package. Raises UnavailableError."""
    package = script.partition("_")[0]
    peer = _installed("python")
    if subprocess.run(
        [peer, "-c", f"import {package}"], capture_output=True, check=False
    ).returncode:
        raise UnavailableError(f"no {package} in .runwire/peers: run `make bench`")
    return [peer, "-m", f"tests.benchmarks.peers.{script}", *arguments]


def _installed(name: str) -> str:
    found = _BIN / name
    if not found.exists():
        raise UnavailableError(f"no {name} in .runwire/peers: run `make bench`")
    return str(found)


def redis_command() -> str:
    """Return a Redis server: the system's if it has one, else the one of a wheel."""
    return shutil.which("redis-server") or _installed("redis-server")


@contextlib.contextmanager
def nats_server() -> Generator[NatsServer]:
    """Run NATS on the server's core, as it comes, without compression, as all others here."""
    command = shutil.which("nats-server") or _installed("nats-server")
    port, websocket = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "nats.conf"
        settings.write_text(
            f"listen: 127.0.0.1:{port}\n"
            f'websocket {{ listen: "127.0.0.1:{websocket}", no_tls: true, compression: false }}\n'
        )
        with program([command, "-c", str(settings), "-l", f"{folder}/log"], {}, SERVER_CORES) as it:
            _await_port(websocket)
            _await_port(port)
            yield NatsServer(port, websocket, it.pid)


@contextlib.contextmanager
def redis_server(wanted: set[int], *, is_durable: bool = False) -> Generator[int]:
    """Run Redis on these cores and yield its port.

    Nothing is written to disk, its fastest way, unless it is to be as durable as Postgres is.
    """
    port = free_port()
    command = [redis_command(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    quiet = ["--daemonize", "no", "--loglevel", "warning"]
    kept = ["--appendonly", "yes", "--appendfsync", "always"]
    # On the disk that Postgres has.
    DISK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DISK) as folder:
        log = kept if is_durable else ["--appendonly", "no"]
        with program([*command, *quiet, *log, "--dir", folder], {}, wanted):
            _await_port(port)
            yield port


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")
