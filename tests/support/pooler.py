"""PgBouncer in transaction mode before a Postgres.

Where it is not installed, whoever asks for it is skipped: Debian's package `pgbouncer` has it.
"""

import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.processes import free_port

_SETTINGS: Final = """
[databases]
* = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 20
max_client_conn = 200
ignore_startup_parameters = extra_float_digits{ignored}
"""
_START_SECONDS: Final = 10.0


@contextmanager
def pooler(dsn: str, *, drops_options: bool = False) -> Generator[str]:
    """Run PgBouncer before the server of a connection string, and return one that leads through it.

    It refuses start-up options, as it does unless told otherwise, or drops them silently.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="runwire-pooler-") as place:
        folder = Path(place)
        settings = folder / "pgbouncer.ini"
        ignored = ", options" if drops_options else ""
        settings.write_text(_SETTINGS.format(server=_server(dsn), port=port, ignored=ignored))
        for path in (folder, settings):
            os.chmod(path, 0o755)
        with (folder / "log").open("wb") as log:
            # It refuses to run as root; and the socket of Postgres is its owner's alone.
            process = Popen(
                [program, "-q", str(settings)],
                stdout=log,
                stderr=STDOUT,
                start_new_session=True,
                user=_user(dsn),
            )
        try:
            through = make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable")
            _until_it_answers(through, process, folder / "log")
            yield through
        finally:
            process.kill()
            process.wait()


def _server(dsn: str) -> str:
    parts = conninfo_to_dict(dsn)
    known = {name: parts[name] for name in ("host", "port", "user", "password") if name in parts}
    return " ".join(f"{name}={value}" for name, value in known.items())


def _user(dsn: str) -> str | None:
    """Return who may open the server's socket, where that is not us."""
    if os.geteuid() != 0:
        return None
    host = Path(str(conninfo_to_dict(dsn).get("host", "")))
    return pwd.getpwuid(host.stat().st_uid).pw_name if host.is_dir() else "postgres"


def _until_it_answers(dsn: str, process: "Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with psycopg.connect(dsn, connect_timeout=2):
                return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")
                raise AssertionError(f"PgBouncer does not answer ({error}):\n{said}") from error
            time.sleep(0.05)  # nothing announces it
