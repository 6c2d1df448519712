"""`runwire keys create|list|revoke` (straight to the database) and `runwire token` (by the API)."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runwire._client import Client
from runwire._settings import Settings
from runwire.requests import PublicTokenBody
from runwire_engine.database import Database
from runwire_engine.environments import Environments
from runwire_realtime.commands.terminal import plain, print_table
from runwire_realtime.errors import NotFoundError
from runwire_realtime.settings import database_address

_out = Console(highlight=False, soft_wrap=True)
Environment = Annotated[
    str, typer.Option("--environment", "-e", envvar="RUNWIRE_ENVIRONMENT", help="By its name.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(help="API keys. Needs RUNWIRE_DATABASE_URL.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_keys)
    group.command("revoke")(revoke)
    app.add_typer(group, name="keys")
    app.command("token")(token)


def create(
    name: Annotated[str, typer.Argument(help="What it is for.")] = "",
    environment: Environment = "dev",
) -> None:
    """Make an API key and print it: it cannot be read again."""

    async def work() -> None:
        async with _environments() as environments:
            _out.print(await environments.create_key(await environments.ensure(environment), name))

    anyio.run(work)


def list_keys(environment: Environment = "dev") -> None:
    """List the keys of an environment, by their first characters."""

    async def work() -> None:
        table = Table("id", "begins with", "name", "created", "revoked", box=None)
        async with _environments() as environments:
            for key in await environments.list_keys(await environments.ensure(environment)):
                revoked = "" if key.revoked_at is None else f"{key.revoked_at:%Y-%m-%d %H:%M}"
                table.add_row(
                    str(key.id),
                    escape(key.hint),
                    escape(plain(key.name)),
                    f"{key.created_at:%Y-%m-%d %H:%M}",
                    revoked,
                )
        print_table(_out, table)

    anyio.run(work)


def revoke(
    key: Annotated[int, typer.Argument(help="Its id, as `runwire keys list` shows it.")],
    environment: Environment = "dev",
) -> None:
    """Make a key invalid, within seconds."""

    async def work() -> None:
        async with _environments() as environments:
            if not await environments.revoke_key(await environments.ensure(environment), key):
                raise NotFoundError(f"there is no valid key {key} in {environment}")
        _out.print(f"revoked key {key}")

    anyio.run(work)


def token(
    scope: Annotated[list[str], typer.Argument(help="As read:runs:run_…, read:tags:user:42.")],
    expires: Annotated[str, typer.Option(help="How long it lives, up to 24h.")] = "15m",
    one_time: Annotated[bool, typer.Option(help="Good for one trigger.")] = False,
    field: Annotated[list[str] | None, typer.Option(help="Only this field of runs.")] = None,
    stream: Annotated[list[str] | None, typer.Option(help="Only this stream.")] = None,
) -> None:
    """Mint a public token with RUNWIRE_API_KEY and print it."""
    body = PublicTokenBody(
        scopes=scope, expiration_time=expires, one_time_use=one_time, fields=field, streams=stream
    )

    async def work() -> None:
        client = Client(Settings.of())
        try:
            response = await client.http.post(
                "/api/v1/auth/public-tokens",
                json=body.model_dump(mode="json", by_alias=True, exclude_none=True),
            )
            _out.print(orjson.loads(response.content)["token"])
        finally:
            await client.aclose()

    anyio.run(work)


@asynccontextmanager
async def _environments() -> AsyncGenerator[Environments]:
    database = Database(database_address(), max_size=1, name="runwire-keys")
    await database.open()
    try:
        yield Environments(database)
    finally:
        await database.close()
