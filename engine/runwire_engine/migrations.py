"""Numbered SQL files, applied in order, each in a transaction of its own.

The ledger runwire.migrations keeps the checksum of each applied file: files are only added, never
edited. Any number of processes may migrate at once; they take turns by an advisory lock that is
held per transaction, so that it also works through a transaction pooler.

Code runs on a database that is newer than it knows, so that processes can be replaced one by one.
A file that takes away what older code uses says in its name how much code has to know:
`0009_drop_old_queues_needs_0007.sql` shuts out code that does not have migration 7. The ledger
keeps the names, so code learns that of files it does not have.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from runwire_engine.database import Database, Transaction
from runwire_engine.errors import (
    DatabaseUnavailableError,
    EngineError,
    MigrationRefusedError,
)

OLDEST_POSTGRES: Final = 15
_FILE_NAME: Final = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")
_NEEDS: Final = re.compile(r"_needs_(\d{4})$")


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def needs(self) -> int:
        """The newest migration that code must know to run on a database with this one."""
        return needs(self.name)

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def known_migrations() -> list[Migration]:
    """Return the migrations this version of the code has, in order."""
    found: list[Migration] = []
    for file in (files("runwire_engine") / "sql" / "migrations").iterdir():
        if match := _FILE_NAME.match(file.name):
            text = file.read_text(encoding="utf-8")
            found.append(Migration(int(match[1]), match[2], text))
    return sorted(found, key=lambda migration: migration.version)


async def migrate(
    dsn: str, migrations: Sequence[Migration] | None = None, *, seconds: float = 15.0
) -> list[str]:
    """Bring a database to this version's schema; return the names of what was applied.

    Waits up to `seconds` for a Postgres that is still starting.

    Raises MigrationRefusedError when this code and this database do not fit together, and
    DatabaseUnavailableError when Postgres cannot be reached.
    """
    wanted = known_migrations() if migrations is None else list(migrations)
    database = Database(
        dsn,
        max_size=1,
        name="runwire-migrate",
        statement_timeout="10min",
        lock_timeout="60s",
        transaction_timeout="30min",
    )
    await database.open(seconds=seconds)
    try:
        await _refuse_unfit_server(database)
        await _create_ledger(database)
        applied = [m.name for m in wanted if await _apply(database, m, wanted)]
        await database.run("migrations.make_partitions")
    finally:
        await database.close()
    return applied


def needs(name: str) -> int:
    """Return how much the migration of this name demands that code knows; 0 for most."""
    found = _NEEDS.search(name)
    return int(found[1]) if found else 0


def misfit(ledger: Mapping[int, str], known: int) -> str | None:
    """Say why code that knows migrations up to `known` cannot run on a database, or None.

    The ledger has the names of the applied migrations by version.
    """
    missing = known - max(ledger, default=0)
    if missing > 0:
        return f"the database lacks {missing} migration(s); run `runwire migrate`"
    needed = max(map(needs, ledger.values()), default=0)
    if needed > known:
        return (
            f"the database needs a version of Runwire that has migration {needed}; this one only"
            f" knows {known}; install the newer version"
        )
    return None


async def require_schema(dsn: str) -> None:
    """Raise MigrationRefusedError when this code cannot run on this database.

    Raises DatabaseUnavailableError when the database does not answer.
    """
    database = Database(dsn, max_size=1, name="runwire-check")
    await database.open()
    try:
        await check_schema(database)
    finally:
        await database.close()


async def check_schema(database: Database) -> None:
    """Do the same over a database that is open."""
    await _refuse_unfit_server(database)
    try:
        rows = await database.all("migrations.applied")
    except DatabaseUnavailableError:
        raise
    except EngineError:
        raise MigrationRefusedError(
            "the database has no schema of Runwire; run `runwire migrate`"
        ) from None
    problem = misfit({row["version"]: row["name"] for row in rows}, _newest())
    if problem is not None:
        raise MigrationRefusedError(problem)


@cache
def _newest() -> int:
    return max(migration.version for migration in known_migrations())


async def _refuse_unfit_server(database: Database) -> None:
    row = await database.one("migrations.server")
    assert row is not None
    refuse_unfit_server(row["version"], is_standby=row["is_standby"])


def refuse_unfit_server(version_number: int, *, is_standby: bool) -> None:
    """Raise MigrationRefusedError for a server that is too old or cannot be written to."""
    major = version_number // 10_000
    if major < OLDEST_POSTGRES:
        raise MigrationRefusedError(
            f"Runwire needs PostgreSQL {OLDEST_POSTGRES} or newer; this server is {major}"
        )
    if is_standby:
        raise MigrationRefusedError(
            "this server is a standby, which cannot be written to; give the primary's address"
        )


async def _create_ledger(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.run("migrations.serialise")
        await tx.run("migrations.create_schema")
        await tx.run("migrations.create_table")


async def _apply(database: Database, migration: Migration, wanted: list[Migration]) -> bool:
    async with database.transaction() as tx:
        await tx.run("migrations.serialise")
        ledger = await _read_ledger(tx)
        _refuse_newer_database(ledger, wanted)
        if migration.version in ledger:
            _refuse_edited_file(migration, ledger[migration.version])
            return False
        await tx.run("migrations.wait_briefly")
        await tx.script(f"migration {migration.version} ({migration.name})", migration.sql)
        await tx.run(
            "migrations.record",
            {
                "version": migration.version,
                "name": migration.name,
                "checksum": migration.checksum,
            },
        )
    return True


async def _read_ledger(tx: Transaction) -> dict[int, str]:
    return {row["version"]: row["checksum"] for row in await tx.all("migrations.applied")}


def _refuse_newer_database(ledger: dict[int, str], wanted: list[Migration]) -> None:
    newest = max((migration.version for migration in wanted), default=0)
    if ledger and max(ledger) > newest:
        raise MigrationRefusedError(
            f"the database has migration {max(ledger)}, this version of Runwire only knows"
            f" {newest}; install the newer version"
        )


def _refuse_edited_file(migration: Migration, checksum: str) -> None:
    if migration.checksum != checksum:
        raise MigrationRefusedError(
            f"migration {migration.version} ({migration.name}) differs from what was applied to"
            " this database; migrations are only added, never edited"
        )
