"""A client with its own address and credential, for code with a loop."""

from types import TracebackType
from typing import Self

from runwire._client import Client
from runwire._settings import AccessToken, Settings
from runwire.auth import Auth
from runwire.batch import Batches
from runwire.idempotency_keys import IdempotencyKeys
from runwire.queues import Queues
from runwire.runs import Runs
from runwire.schedules import Schedules
from runwire.streams import Streams
from runwire.tasks import Tasks
from runwire.wait import Wait


class AsyncRunwire:
    """The calls of the modules `tasks`, `runs`, `batch`, `queues`, `idempotency_keys`, `streams`,
    `auth`, `schedules` and `wait`.

    What is not given comes from RUNWIRE_API_URL, RUNWIRE_API_KEY, RUNWIRE_ACCESS_TOKEN. Use it in
    the loop where it is first used, with `async with`, or call `aclose`.
    """

    def __init__(
        self, *, api_url: str | None = None, access_token: AccessToken | None = None
    ) -> None:
        client = Client(Settings.of(api_url, access_token))
        self._client = client
        self.tasks = Tasks(client)
        self.runs = Runs(lambda: client)
        self.batch = Batches(lambda: client, lambda: client)
        self.idempotency_keys = IdempotencyKeys(lambda: client, lambda: client)
        self.queues = Queues(lambda: client)
        self.streams = Streams(lambda: client)
        self.auth = Auth(lambda: client)
        self.schedules = Schedules(lambda: client)
        self.wait = Wait(lambda: client, lambda: client)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
