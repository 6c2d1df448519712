"""The child's side of a process that keeps others: it reports its start and dies with its parent.

Such children are the worker of `runwire dev` and the servers of `runwire server --processes`.

The parent may be killed without a chance to stop anybody. On Linux the kernel then signals the
child; everywhere the child also looks who its parent is.
"""

import ctypes
import os
import signal
import sys
from typing import Final

import anyio

PARENT_VARIABLE: Final = "RUNWIRE_PARENT"  # the parent's process id
REPORT_VARIABLE: Final = "RUNWIRE_REPORT"  # the descriptor to report to
READY: Final = "ready"
# Set: the port is shared with the parent's other children, and is listened on when it says so.
SHARES_PORT: Final = "RUNWIRE_SHARES_PORT"
_LOOK_SECONDS: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1


def die_with_parent() -> None:
    """Ask the kernel to end this process with its parent; exit if that has ended already."""
    parent = _parent()
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)


async def until_orphaned() -> None:
    """Return when the parent is gone; never without one."""
    parent = _parent()
    while parent is None or os.getppid() == parent:  # noqa: ASYNC110 (nothing sets an event)
        await anyio.sleep(_LOOK_SECONDS)


def shares_port() -> bool:
    """Say whether this process is one of several servers on one port."""
    return _parent() is not None and SHARES_PORT in os.environ


async def until_told() -> None:
    """Wait for the parent's word on standard input; its end counts too."""
    await anyio.wait_readable(sys.stdin.fileno())


def report(word: str) -> bool:
    """Tell the parent, once, that the start succeeded, or in one line why it failed.

    Return whether there was a parent to tell.
    """
    descriptor = os.environ.pop(REPORT_VARIABLE, "")
    if not descriptor.isdigit():
        return False
    try:
        os.write(int(descriptor), (word.replace("\n", " ")[:1000] + "\n").encode())
        os.close(int(descriptor))
    except OSError:
        return False  # the parent is gone, which until_orphaned notices
    return True


def _parent() -> int | None:
    text = os.environ.get(PARENT_VARIABLE, "")
    return int(text) if text.isdigit() else None
