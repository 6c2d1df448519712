"""Hooks of pytest that bound a test to its end: fixtures too, and whether it failed or not.

pytest-timeout lets go of a test at its first failure: one that hung while it is taken down would
keep everything.
"""

import faulthandler
import os
import sys
import threading
from collections.abc import Generator
from typing import Any, Final

import pytest

from tests.support.processes import kill_descendants

# Beyond a test's own bound: for what is taken down then.
_MORE: Final = float(os.environ.get("RUNWIRE_TAKE_DOWN_SECONDS", "60"))
_timer = pytest.StashKey[threading.Timer]()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Have the process end, with all stacks, when a test takes much longer than it may.

    What it has started ends with it.
    """
    timer = item.stash[_timer] = threading.Timer(settings.timeout + _MORE, _end, [item])
    timer.daemon = True
    timer.start()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let go of a test that has ended."""
    try:
        return (yield)
    finally:
        if _timer in item.stash:
            item.stash[_timer].cancel()
            item.stash[_timer].join()


def _end(item: pytest.Item) -> None:
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture()
    os.write(sys.stderr.fileno(), f"\n{item.nodeid} does not end:\n".encode())
    faulthandler.dump_traceback(sys.stderr)
    kill_descendants()
    os._exit(1)
