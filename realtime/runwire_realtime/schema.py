"""Whether a database has the schema that this code needs."""

from runwire_engine import migrations
from runwire_engine.database import Database
from runwire_engine.errors import DatabaseUnavailableError, MigrationRefusedError
from runwire_realtime.errors import StartError


async def require_schema(dsn: str) -> None:
    """Raise StartError for a database that does not fit this code."""
    try:
        await migrations.require_schema(dsn)
    except MigrationRefusedError as error:
        raise StartError(str(error)) from None


async def problem_with(database: Database) -> str | None:
    """Return what is wrong with the database, in a sentence, or None."""
    try:
        await migrations.check_schema(database)
    except DatabaseUnavailableError:
        return "the database does not answer"
    except MigrationRefusedError as error:
        return str(error)
    return None
