"""Postgres for tests: one cluster, one template with every migration, a copy for each test.

One cluster is shared by all test sessions of this checkout: the first one starts it, the last one
stops it. It lives in memory where there is room, else in `.runwire/test-postgres`: making a
database means making 300 files. RUNWIRE_TEST_DATABASE_URL names another server
instead; its role must be allowed to create databases.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO

import anyio
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from runwire_engine.database import Database
from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.environments import Environments
from runwire_engine.migrations import known_migrations, migrate

# Of several processes that share the tests each has a cluster of its own: what a test sees of
# transactions, sessions and load is then its own, too.
FOLDER = (
    Path(__file__).parents[2]
    / ".runwire"
    / "test-postgres"
    / os.environ.get("PYTEST_XDIST_WORKER", "")
)
ENVIRONMENT = "dev"
_TEMPLATE_PREFIX = "runwire_template_"
_COPY_PREFIX = "runwire_test_"
# A machine's crash may cost test data, nothing else: no need to wait for the disk. The rest is so
# that several test sessions can share the cluster.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "max_wal_size": "128MB",
}
_MEMORY = Path("/dev/shm")
_ENOUGH_MEMORY = 2 * 1024**3


@dataclass
class TestServer:
    """A server on which databases for tests are made from the template."""

    __test__ = False  # not a test class, whatever its name says

    # Any database of the server that is always there.
    admin_dsn: str
    template: str
    _admin: psycopg.Connection[tuple[object, ...]]
    _numbers: "count[int]" = field(default_factory=count)

    def create_database(self, template: str | None = None) -> str:
        """Make a fresh copy of the template and return its connection string."""
        name = f"{_COPY_PREFIX}{os.getpid()}_{next(self._numbers)}"
        self._admin.execute(
            SQL("create database {} template {}").format(
                Identifier(name), Identifier(template or self.template)
            )
        )
        return make_conninfo(self.admin_dsn, dbname=name)

    def drop_database(self, dsn: str) -> None:
        """Drop a database of this server, whoever is still connected to it."""
        name = str(conninfo_to_dict(dsn)["dbname"])
        self._admin.execute(SQL("drop database if exists {} with (force)").format(Identifier(name)))


@contextmanager
def running_server() -> Generator[TestServer]:
    """Provide the server of this test session."""
    external = os.environ.get("RUNWIRE_TEST_DATABASE_URL")
    if external:
        with _prepared(external, is_ours_alone=False) as server:
            yield server
        return
    with _shared_cluster() as (dsn, is_ours_alone), _prepared(dsn, is_ours_alone) as server:
        yield server


@asynccontextmanager
async def opened_database(dsn: str, *, max_size: int = 10) -> AsyncGenerator[Database]:
    """Open a Database for the length of a block."""
    database = Database(dsn, max_size=max_size)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


# Kept, because a Popen warns when it is dropped while its process runs on.
_left_to_others: list[EmbeddedPostgres] = []


@contextmanager
def _shared_cluster() -> Generator[tuple[str, bool]]:
    """Start or join the cluster of this checkout; the last session to leave stops it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "sessions.lock").open("w") as sessions:
        is_ours_alone = _lock_alone(sessions)
        if not is_ours_alone:
            fcntl.flock(sessions, fcntl.LOCK_SH)
        # A second lock, for the moment of starting: several sessions may arrive at once.
        cluster = EmbeddedPostgres(_cluster_folder(), settings=_SETTINGS)
        with (FOLDER / "starting.lock").open("w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            anyio.run(cluster.start)
            cluster.release()
        if is_ours_alone:
            _drop_leftovers(cluster.dsn)
        fcntl.flock(sessions, fcntl.LOCK_SH)
        try:
            yield cluster.dsn, is_ours_alone
        finally:
            if _lock_alone(sessions):
                anyio.run(_stop, cluster)
            else:
                _left_to_others.append(cluster)


def _cluster_folder() -> Path:
    """Choose the folder, the same for every session; what is in memory already stays there."""
    digest = hashlib.sha256(os.fsencode(FOLDER)).hexdigest()[:12]
    in_memory = _MEMORY / f"runwire-test-{digest}"
    if in_memory.exists():
        return in_memory
    has_room = _MEMORY.exists() and shutil.disk_usage(_MEMORY).free > _ENOUGH_MEMORY
    return in_memory if has_room else FOLDER


async def _stop(cluster: EmbeddedPostgres) -> None:
    await cluster.start()
    await cluster.stop()
    if cluster.folder != FOLDER:
        shutil.rmtree(cluster.folder)  # memory is not for keeping


def _lock_alone(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _drop_leftovers(dsn: str) -> None:
    """Drop what killed sessions left; nobody else is here."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        for (name,) in admin.execute(
            "select datname from pg_database where starts_with(datname, %s)", (_COPY_PREFIX,)
        ).fetchall():
            admin.execute(SQL("drop database {} with (force)").format(Identifier(name)))


@contextmanager
def _prepared(dsn: str, is_ours_alone: bool) -> Generator[TestServer]:
    with psycopg.connect(dsn, autocommit=True) as admin:
        server = TestServer(dsn, _template_name(), admin)
        admin.execute("select pg_advisory_lock(hashtext('runwire.tests'))")
        try:
            _ensure_template(server, admin)
        finally:
            admin.execute("select pg_advisory_unlock(hashtext('runwire.tests'))")
        yield server


def _template_name() -> str:
    """Name the template after what is in it: the migrations and the day its partitions start."""
    digest = hashlib.sha256("".join(m.checksum for m in known_migrations()).encode()).hexdigest()
    return f"{_TEMPLATE_PREFIX}{digest[:10]}_{datetime.now(UTC):%Y%m%d}"


def _ensure_template(server: TestServer, admin: psycopg.Connection[tuple[object, ...]]) -> None:
    found = admin.execute("select from pg_database where datname = %s", (server.template,))
    if found.fetchone() is not None:
        return
    for (name,) in admin.execute(
        "select datname from pg_database where starts_with(datname, %s)", (_TEMPLATE_PREFIX,)
    ).fetchall():
        admin.execute(SQL("drop database if exists {} with (force)").format(Identifier(str(name))))
    scratch = f"{_TEMPLATE_PREFIX}making_{os.getpid()}"
    admin.execute(SQL("create database {}").format(Identifier(scratch)))
    anyio.run(_fill_template, make_conninfo(server.admin_dsn, dbname=scratch))
    admin.execute(
        SQL("alter database {} rename to {}").format(
            Identifier(scratch), Identifier(server.template)
        )
    )


async def _fill_template(dsn: str) -> None:
    await migrate(dsn)
    async with opened_database(dsn, max_size=1) as database:
        await Environments(database).ensure(ENVIRONMENT)
