"""Whether a database has the schema that this code needs."""

from functools import cache

from runwire_engine.database import Database
from runwire_engine.errors import DatabaseUnavailableError, EngineError
from runwire_engine.migrations import known_migrations
from runwire_realtime.errors import StartError


async def require_schema(dsn: str) -> None:
    """Raise StartError for a database that does not fit this code."""
    database = Database(dsn, max_size=1, name="runwire-check")
    await database.open()
    try:
        problem = await problem_with(database)
    finally:
        await database.close()
    if problem is not None:
        raise StartError(problem)


async def problem_with(database: Database) -> str | None:
    """Return what is wrong with the database, in a sentence, or None."""
    try:
        rows = await database.all("migrations.applied")
    except DatabaseUnavailableError:
        return "the database does not answer"
    except EngineError:
        return "the database has no schema of Runwire; run `runwire migrate`"
    missing = _newest() - max((int(row["version"]) for row in rows), default=0)
    if missing > 0:
        return f"the database lacks {missing} migration(s); run `runwire migrate`"
    return None


@cache
def _newest() -> int:
    return max(migration.version for migration in known_migrations())
