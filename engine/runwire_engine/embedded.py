"""The embedded Postgres: made once, started, adopted after a crash, brought back when it dies.

`EmbeddedPostgres(folder)` keeps the cluster in `<folder>/postgres` and its log in
`<folder>/postgres.log`. One supervisor per folder, held to it by a lock on
`<folder>/postgres.lock`.

Postgres listens on a unix socket only, inside the cluster's own directory (mode 0700), so that
exactly the processes of the same user, and root, can connect, and no port or password is needed.
It runs in a session of its own and outlives a supervisor that is killed; the next one adopts it.

On a disk that is full Postgres may not come up at all: that is said at once, and the supervisor
then looks for room before it tries again, instead of starting it over and over.
"""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

import anyio
import psycopg
from psycopg.sql import SQL, Identifier

from runwire_engine.cluster import SUPERUSER, Cluster
from runwire_engine.errors import DataDirectoryLockedError, EmbeddedPostgresError

logger = logging.getLogger("runwire.embedded")

DATABASE: Final = "runwire"
# After a SIGKILL the shared memory of the dead is held for seconds; a recovery takes longer.
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 3.0  # everything is to stop within 5
_LOOK_SECONDS: Final = 0.25
# Between two tries to bring it back, once one has failed.
_PAUSES: Final = (1.0, 30.0)
# One file of its log; without room for another Postgres dies as soon as it starts.
_LEAST_ROOM: Final = 16 * 1024 * 1024
_LONGEST_LOG: Final = 10 * 1024 * 1024

# Durability is never traded for speed here: what a subscriber has seen must survive a crash.
SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "wal_buffers": "16MB",
    "max_wal_size": "1GB",
    # The role has the schema's name; a statement that forgets the schema shall fail here as well.
    "search_path": "public",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    # Values belong to users; the log must not quote them.
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_min_error_statement": "panic",
}


class EmbeddedPostgres:
    """Supervises the one Postgres of a data folder."""

    def __init__(
        self,
        data_dir: str | Path,
        *,
        settings: Mapping[str, str] | None = None,
        start_seconds: float = _START_SECONDS,
    ) -> None:
        self.folder = Path(data_dir).absolute()
        self.log_file = self.folder / "postgres.log"
        self._cluster = Cluster(self.folder / "postgres")
        self._settings = {**SETTINGS, **(settings or {})}
        self._start_seconds = start_seconds
        self._lock: IO[str] | None = None
        # Set while Postgres is our child; None when it was adopted or is not running.
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The connection string, good for any process of the same user."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        """Return the connection string of another database of this cluster."""
        host = quote(str(self.socket_directory), safe="")
        return f"postgresql://{SUPERUSER}@/{database}?host={host}"

    @property
    def cluster(self) -> Path:
        """The cluster's directory."""
        return self._cluster.directory

    @property
    def socket_directory(self) -> Path:
        return self._cluster.socket_directory

    @property
    def process_id(self) -> int | None:
        """The postmaster's process id, ours or the one it noted; it may be dead."""
        if self._process is not None:
            return self._process.pid
        return self._cluster.noted_process_id

    async def start(self) -> None:
        """Take the folder, make the cluster if it is new, and start or adopt its Postgres.

        Raises DataDirectoryLockedError when another supervisor has the folder, and
        EmbeddedPostgresError with the end of Postgres' log when it does not come up.
        """
        self._take_lock()
        try:
            await anyio.to_thread.run_sync(self._cluster.prepare)
            await self._bring_up()
            await self._ensure_database()
        except BaseException:
            with anyio.CancelScope(shield=True):
                if self._process is not None:  # what we started ourselves does not stay behind
                    await self._shut_down()
            self._drop_lock()
            raise

    async def stop(self) -> None:
        """Stop Postgres, quickly but cleanly, and give the folder back."""
        with anyio.CancelScope(shield=True):  # it is bounded, and half a stop helps nobody
            await self._shut_down()
        self._drop_lock()

    def release(self) -> None:
        """Give the folder back and leave Postgres running, for the next supervisor to adopt."""
        self._drop_lock()

    async def supervise(self) -> None:
        """Bring Postgres back whenever it dies; runs until it is cancelled."""
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            if not self.is_running():
                logger.warning("the embedded Postgres died; bringing it back")
                await self._revive()
                logger.warning("the embedded Postgres is back")

    def is_running(self) -> bool:
        """Say whether the postmaster lives; it may still be starting."""
        if self._process is not None:
            return self._process.poll() is None
        pid = self._cluster.noted_process_id
        return pid is not None and self._cluster.is_postmaster(pid)

    async def _bring_up(self) -> None:
        """Start Postgres, patiently, unless it already runs.

        After a SIGKILL the first starts fail: the dead postmaster's children still hold its shared
        memory. Its postmaster.pid is never deleted by us: that file is what keeps two postmasters
        from destroying the cluster.
        """
        wait = 0.1
        spawned = False
        with anyio.move_on_after(self._start_seconds):
            while not await self._answers():
                if not self.is_running():
                    if spawned:
                        self._refuse_full_disk()
                    with self._open_log() as log:
                        self._process = self._cluster.spawn(self._settings, log)
                    spawned = True
                await anyio.sleep(wait)
                wait = min(wait * 1.3, 1.0)
            return
        raise EmbeddedPostgresError(
            f"the embedded Postgres did not start within {self._start_seconds:g} s;"
            f" the end of {self.log_file}:\n{self._log_tail()}"
        )

    async def _revive(self) -> None:
        """Bring it up, however long that takes."""
        pause, longest = _PAUSES
        told = ""
        while True:
            try:
                return await self._bring_up()
            except (EmbeddedPostgresError, OSError) as error:
                if str(error) != told:
                    logger.error("%s", error)
                told = str(error)
            await self._room_or(pause)
            pause = min(pause * 2, longest)

    async def _room_or(self, seconds: float) -> None:
        """Wait so long, or, on a full disk, until there is room."""
        was_full = self._is_full()
        with anyio.move_on_after(seconds):
            while not was_full or self._is_full():  # noqa: ASYNC110 -- a disk announces nothing
                await anyio.sleep(_LOOK_SECONDS)

    def _is_full(self) -> bool:
        return shutil.disk_usage(self.folder).free < _LEAST_ROOM

    def _refuse_full_disk(self) -> None:
        if self._is_full():
            raise EmbeddedPostgresError(
                f"the embedded Postgres cannot run: the disk of {self.folder} is full;"
                f" it needs {_LEAST_ROOM // 1024**2} MiB and more"
            )

    async def _answers(self) -> bool:
        if not self.is_running():
            return False
        try:
            connection = await psycopg.AsyncConnection.connect(
                self.dsn_of("postgres"), connect_timeout=2, autocommit=True
            )
        except psycopg.OperationalError:
            return False
        await connection.close()
        return True

    async def _ensure_database(self) -> None:
        async with await psycopg.AsyncConnection.connect(
            self.dsn_of("postgres"), autocommit=True
        ) as connection:
            found = await connection.execute(
                "select from pg_database where datname = %s", (DATABASE,)
            )
            if await found.fetchone() is None:
                await connection.execute(SQL("create database {}").format(Identifier(DATABASE)))

    async def _shut_down(self) -> None:
        for request in (signal.SIGINT, signal.SIGQUIT):  # fast, then immediate: both lose nothing
            pid = self.process_id
            if pid is None or not self.is_running():
                break
            os.kill(pid, request)
            with anyio.move_on_after(_STOP_SECONDS):
                await self._until_gone()
        self._process = None

    async def _until_gone(self) -> None:
        while True:
            if not self.is_running():
                return
            await anyio.sleep(0.02)  # an adopted process is not our child: nothing wakes us

    def _open_log(self) -> IO[bytes]:
        """Open the log for our user alone: Postgres' messages may quote what users wrote."""
        if self.log_file.exists() and self.log_file.stat().st_size > _LONGEST_LOG:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "ab")

    def _log_tail(self) -> str:
        try:
            return self.log_file.read_text(errors="replace")[-1500:].strip()
        except OSError:
            return "(no log)"

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "postgres.lock").open("w")
        except OSError as error:
            raise EmbeddedPostgresError(
                f"the data folder {self.folder} cannot be used: {error.strerror}"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise DataDirectoryLockedError(str(self.folder)) from None
        self._lock = lock

    def _drop_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
