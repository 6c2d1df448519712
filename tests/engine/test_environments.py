"""Environments and API keys."""

import anyio
import pytest

from runwire_engine.database import Database
from runwire_engine.environments import KEY_PREFIX, Environments
from runwire_engine.errors import KeyRefusedError

pytestmark = pytest.mark.anyio


async def test_an_environment_is_made_once(database: Database, env: int) -> None:
    environments = Environments(database)

    assert await environments.ensure("dev") == env
    assert await environments.ensure("staging") != env


async def test_many_at_once_get_the_same_environment(database: Database, env: int) -> None:
    environments = Environments(database)
    ids: set[int] = set()

    async def ensure() -> None:
        ids.add(await environments.ensure("preview"))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ensure)

    assert len(ids) == 1


async def test_a_created_key_opens_its_environment(database: Database, env: int) -> None:
    environments = Environments(database)
    key = await environments.create_key(env, "laptop")

    assert key.startswith(KEY_PREFIX) and len(key) == len(KEY_PREFIX) + 24
    assert await environments.verify_key(key) == env


@pytest.mark.parametrize("key", ["", "x", "tr_dev_sk_" + "a" * 24, "é" * 20, "\0" * 20, "k" * 9999])
async def test_an_unknown_key_opens_nothing(database: Database, env: int, key: str) -> None:
    assert await Environments(database).verify_key(key) is None


async def test_only_the_hash_of_a_key_is_stored(database: Database, env: int) -> None:
    environments = Environments(database)
    key = await environments.create_key(env)

    async with database.session() as session:
        cursor = await session.connection.execute("select k::text as row from runwire.api_keys k")
        rows = str(await cursor.fetchall())

    assert key not in rows
    assert key[-16:] not in rows


async def test_a_revoked_key_opens_nothing(database: Database, env: int) -> None:
    environments = Environments(database)
    key = await environments.create_key(env)
    [shown] = await environments.list_keys(env)

    assert await environments.revoke_key(env, shown.id) is True
    assert await environments.revoke_key(env, shown.id) is False
    assert await environments.verify_key(key) is None
    assert (await environments.list_keys(env))[0].revoked_at is not None


async def test_a_key_of_another_environment_cannot_be_revoked(database: Database, env: int) -> None:
    environments = Environments(database)
    other = await environments.ensure("other")
    key = await environments.create_key(other)
    [shown] = await environments.list_keys(other)

    assert await environments.revoke_key(env, shown.id) is False
    assert await environments.verify_key(key) == other


async def test_a_given_key_can_be_made_valid_again_and_again(database: Database, env: int) -> None:
    environments = Environments(database)
    await environments.ensure_key(env, "my-own-development-key")
    await environments.ensure_key(env, "my-own-development-key")
    [shown] = await environments.list_keys(env)
    await environments.revoke_key(env, shown.id)
    await environments.ensure_key(env, "my-own-development-key")

    assert await environments.verify_key("my-own-development-key") == env
    # Of a key that was chosen by a person, no part is shown: it may be short.
    assert shown.hint == ""


async def test_a_given_key_of_another_environment_is_refused(database: Database, env: int) -> None:
    environments = Environments(database)
    await environments.ensure_key(env, "my-own-development-key")

    with pytest.raises(KeyRefusedError):
        await environments.ensure_key(await environments.ensure("other"), "my-own-development-key")


@pytest.mark.parametrize("key", ["short", "has a space in it", "é" * 20, "k" * 300])
async def test_a_malformed_given_key_is_refused(database: Database, env: int, key: str) -> None:
    with pytest.raises(KeyRefusedError):
        await Environments(database).ensure_key(env, key)
