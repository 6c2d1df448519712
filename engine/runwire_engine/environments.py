"""Environments and their API keys.

Only the SHA-256 of a key is stored: a key has 24 random characters (142 bits), so that a slow hash
would protect nothing. The hint tells keys apart for a person and opens nothing.
"""

import hashlib
import secrets
import string
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from runwire_engine.database import Database
from runwire_engine.errors import KeyRefusedError

KEY_PREFIX: Final = "tr_dev_sk_"  # the form for which official clients let the server mint tokens
_ALPHABET: Final = string.ascii_letters + string.digits
_RANDOM_CHARACTERS: Final = 24
_HINT_CHARACTERS: Final = 4  # after the prefix
_LONGEST_KEY: Final = 256


@dataclass(frozen=True)
class ApiKey:
    """What may be shown of a key."""

    id: int
    hint: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


class Environments:
    """Environments by name, keys by hash."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ensure(self, name: str) -> int:
        """Return the id of the environment of this name; make it when there is none."""
        while True:
            row = await self._database.one("environments.ensure", {"name": name})
            # No row: another process made it between this statement's look and its insert.
            if row is not None:
                return int(row["id"])

    async def name(self, environment_id: int) -> str | None:
        """Return an environment's name, or None when there is no such environment."""
        row = await self._database.one("environments.name", {"id": environment_id})
        return None if row is None else str(row["name"])

    async def create_key(self, environment_id: int, name: str = "") -> str:
        """Make a key. The caller must show it now: it cannot be read again."""
        key = new_key()
        await self._insert(environment_id, key, name)
        return key

    async def ensure_key(self, environment_id: int, key: str, name: str = "") -> None:
        """Make a given key valid for this environment.

        Raises KeyRefusedError when the key is malformed or opens another environment.
        """
        if not is_key(key):
            raise KeyRefusedError(
                f"an API key has 8 to {_LONGEST_KEY} visible ASCII characters and no spaces"
            )
        await self._insert(environment_id, key, name)
        row = await self._database.one("environments.key_by_hash", {"hash": _hash(key)})
        if row is None or row["environment_id"] != environment_id:
            raise KeyRefusedError("this API key already belongs to another environment")
        if row["revoked_at"] is not None:
            await self._database.run("environments.restore_key", {"hash": _hash(key)})

    async def verify_key(self, key: str) -> int | None:
        """Return the id of the environment a key opens, or None."""
        if not is_key(key):
            return None
        row = await self._database.one("environments.environment_of_key", {"hash": _hash(key)})
        return None if row is None else int(row["environment_id"])

    async def revoke_key(self, environment_id: int, key_id: int) -> bool:
        """Make a key invalid; False when it already was or is not there."""
        parameters = {"environment_id": environment_id, "id": key_id}
        return await self._database.run("environments.revoke_key", parameters) == 1

    async def list_keys(self, environment_id: int) -> list[ApiKey]:
        """Return the environment's keys, oldest first, revoked ones included."""
        rows = await self._database.all(
            "environments.list_keys", {"environment_id": environment_id}
        )
        return [ApiKey(**row) for row in rows]

    async def _insert(self, environment_id: int, key: str, name: str) -> None:
        await self._database.run(
            "environments.insert_key",
            {
                "environment_id": environment_id,
                "hash": _hash(key),
                "hint": key[: len(KEY_PREFIX) + _HINT_CHARACTERS] if is_generated(key) else "",
                "name": name,
            },
        )


def new_key() -> str:
    """Return a fresh API key."""
    return KEY_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))


def is_key(key: str) -> bool:
    """Say whether a text could be a key at all, before anything is computed from it."""
    return 8 <= len(key) <= _LONGEST_KEY and all("!" <= character <= "~" for character in key)


def is_generated(key: str) -> bool:
    """Say whether a key has the generated form; only then its first characters may be shown."""
    return key.startswith(KEY_PREFIX) and len(key) == len(KEY_PREFIX) + _RANDOM_CHARACTERS


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
