"""Work for a run that outlasts a Postgres which is away, as its chunks and metadata do."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from runwire_engine.errors import CommitUnknownError, DatabaseUnavailableError
from runwire_engine.flusher import RETRY_FOR

T = TypeVar("T")

_PAUSE = 0.5


async def patiently(work: Callable[[], Awaitable[T]], *, seconds: float = RETRY_FOR) -> T:
    """Do work again while the database is away, for so long; what may have happened is raised.

    Raises DatabaseUnavailableError after that time, and what `work` raises.
    """
    deadline = anyio.current_time() + seconds
    while True:
        try:
            return await work()
        except CommitUnknownError:
            raise
        except DatabaseUnavailableError:
            if anyio.current_time() + _PAUSE > deadline:
                raise
        await anyio.sleep(_PAUSE)
