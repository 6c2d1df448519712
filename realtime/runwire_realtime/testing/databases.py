"""The Postgres of one test session: a template with every migration, a copy for each test."""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import anyio
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from runwire_engine.database import Database
from runwire_engine.embedded import EmbeddedPostgres
from runwire_engine.environments import Environments
from runwire_engine.migrations import migrate

ENVIRONMENT: Final = "test"
_TEMPLATE: Final = "runwire_testing"
# A crash of the machine may cost test data, nothing else.
_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_wal_size": "128MB",
}


class Databases:
    """Makes databases for tests, each a copy of the template."""

    def __init__(self, dsn: str, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        self._dsn = dsn
        self._admin = admin
        self._numbers = count(1)

    @contextmanager
    def database(self) -> Generator[str]:
        """Provide a fresh database for the length of a block."""
        template = str(conninfo_to_dict(self._dsn)["dbname"])
        name = f"{template}_{next(self._numbers)}"
        made = SQL("create database {} template {}")
        self._admin.execute(made.format(Identifier(name), Identifier(template)))
        try:
            yield make_conninfo(self._dsn, dbname=name)
        finally:
            dropped = SQL("drop database if exists {} with (force)")
            self._admin.execute(dropped.format(Identifier(name)))


@contextmanager
def borrowed_databases(dsn: str) -> Generator[Databases]:
    """Use a Postgres that runs already; its role may make databases. Nothing is left in it."""
    name = f"{_TEMPLATE}_{os.getpid()}_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(SQL("create database {}").format(Identifier(name)))
        template = make_conninfo(dsn, dbname=name)
        try:
            anyio.run(make_template, template)
            yield Databases(template, admin)
        finally:
            admin.execute(SQL("drop database {} with (force)").format(Identifier(name)))


@contextmanager
def running_databases(folder: Path) -> Generator[Databases]:
    """Run an embedded Postgres for the length of a block, with a template in it."""
    postgres = EmbeddedPostgres(folder, settings=_SETTINGS)
    anyio.run(postgres.start)
    try:
        anyio.run(make_template, postgres.dsn)
        with psycopg.connect(postgres.dsn_of("postgres"), autocommit=True) as admin:
            yield Databases(postgres.dsn, admin)
    finally:
        anyio.run(postgres.stop)


async def make_template(dsn: str) -> None:
    """Migrate the database that the others are copies of, and give it a clock that can be moved."""
    await migrate(dsn)
    database = Database(dsn, max_size=1)
    await database.open()
    try:
        await Environments(database).ensure(ENVIRONMENT)
        await database.run("testing.make_clock")
        await database.run("testing.use_clock")
    finally:
        await database.close()
