"""Tells when the event loop was held up, and by what.

Everything a hub does takes turns on one loop: a call that does not come back holds up every
connection. A thread beside it notices and logs where the loop is, while it is there.
"""

import logging
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Final

logger = logging.getLogger("runwire.watchdog")

HELD_UP_SECONDS: Final = 1.0
_LOOKS: Final = 4  # in that time
_STOP_SECONDS: Final = 5.0


class Watchdog:
    """Watches the loop of the thread that enters it; `beat` says that it turns."""

    def __init__(self, seconds: float = HELD_UP_SECONDS) -> None:
        self._seconds = seconds
        self._beat_at = time.monotonic()
        self._watched = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="runwire-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._watched = threading.get_ident()
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(_STOP_SECONDS)

    def beat(self) -> None:
        """Note that the loop turns."""
        self._beat_at = time.monotonic()

    def _watch(self) -> None:
        held_up_since: float | None = None
        while not self._stopping.wait(self._seconds / _LOOKS):
            beat_at = self._beat_at
            if held_up_since is not None and beat_at != held_up_since:
                logger.warning(
                    "the event loop turns again after %.1f s", self._beat_at - held_up_since
                )
                held_up_since = None
            if held_up_since is None and time.monotonic() - beat_at >= self._seconds:
                held_up_since = beat_at
                logger.warning("the event loop is held up, here:\n%s", self._where())

    def _where(self) -> str:
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage] -- documented
        frame = frames.get(self._watched)
        return "(its thread has ended)" if frame is None else "".join(traceback.format_stack(frame))
