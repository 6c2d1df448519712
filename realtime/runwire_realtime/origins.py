"""Which hosts and browser origins a server answers to. [core]

A browser names the page's origin; a program does not, and its credential alone decides. Compared
are scheme, host and port as they stand: no suffixes, no patterns but the two words "*" (any origin;
safe for requests whose only credential is a header) and "loopback" (any port of this machine, for a
front end under development).
"""

from collections.abc import Sequence
from typing import Final

ANY: Final = "*"
LOOPBACK: Final = "loopback"
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


def may_use_origin(origin: str, allowed: Sequence[str], *, own: str | None = None) -> bool:
    """Say whether a page of this origin may talk to the server; `own` is the server's own."""
    if origin == "null":
        return False
    if origin == own or ANY in allowed or origin in allowed:
        return True
    return LOOPBACK in allowed and is_loopback_origin(origin)


def is_loopback_origin(origin: str) -> bool:
    """Say whether an origin is a page served by this machine."""
    scheme, _, rest = origin.partition("://")
    return scheme in {"http", "https"} and host_name(rest) in _LOOPBACK_HOSTS


def may_use_host(host: str, allowed: Sequence[str]) -> bool:
    """Say whether a Host header names this server; on loopback no rebound DNS name does."""
    return ANY in allowed or host_name(host) in allowed


def host_name(host: str) -> str:
    """Return a Host header without its port, in lower case."""
    name = host.lower()
    if name.startswith("["):
        address, end, port = name.partition("]")
        return address + end if port[:1] in {"", ":"} else name
    return name.partition(":")[0]


def loopback_hosts() -> tuple[str, ...]:
    """Return the names under which a loopback server is reached."""
    return tuple(sorted(_LOOPBACK_HOSTS))


def own_origin(scheme: str, host: str) -> str:
    """Return the origin of pages that were served under this scheme and Host header."""
    return f"{scheme}://{host}".lower()
