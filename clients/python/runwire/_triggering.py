"""Starting single runs: through the executing run where there is one, else over HTTP, or inside a
transaction of the caller's own."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

from runwire import _context, _default, _transactional, idempotency_keys
from runwire._client import Client
from runwire._context import Triggered
from runwire._default import Blocking
from runwire._options import TriggerKeywords, trigger_options
from runwire.errors import ConfigurationError
from runwire.requests import BatchItem, TriggerAnswer, TriggerBody

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

OutputT = TypeVar("OutputT")

# From the JSON of an output to what the task's function returned.
Parse: TypeAlias = Callable[[object], Any]


@dataclass(frozen=True)
class RunHandle(Generic[OutputT]):
    """A run that was triggered."""

    id: str
    task_identifier: str
    # Whether an idempotency key matched and this is the run of an earlier trigger.
    is_cached: bool
    # Reads this run for an hour: what a browser needs to follow it.
    public_access_token: str | None


@dataclass(frozen=True)
class Entry:
    """One run that is wanted, its payload as JSON text."""

    task: str
    payload: str | None
    options: TriggerKeywords
    # Makes of its output what the task returned.
    parse: Parse | None = None

    def item(self, index: int) -> BatchItem:
        """Return it as it travels. Raises TypeError and InvalidValueError for its options."""
        options = trigger_options(self.options)
        return BatchItem(index=index, task=self.task, payload=self.payload, options=options)


async def trigger(
    client: Client | None,
    entry: Entry,
    connection: "AsyncConnection[Any] | None" = None,
) -> RunHandle[Any]:
    """Start a run. With a client the call always goes over HTTP."""
    options = trigger_options(entry.options)
    if connection is not None:
        refuse_client(client)
        environment, parent = _transactional.surroundings()
        engine = _transactional.engine()
        return _handle(
            entry.task,
            await engine.trigger(
                connection, environment, entry.task, entry.payload, options, parent
            ),
        )
    runtime = _context.current() if client is None else None
    if runtime is not None:
        key = request_key()
        return _handle(entry.task, await runtime.trigger(entry.task, entry.payload, options, key))
    client = client or _default.client()
    body = TriggerBody(payload=entry.payload, options=options)
    response = await client.http.post(
        f"/api/v1/tasks/{quote(entry.task, safe='')}/trigger",
        json=body.model_dump(mode="json", by_alias=True, exclude_none=True),
    )
    handle = TriggerAnswer.model_validate_json(response.content)
    token = response.headers.get("x-trigger-jwt")
    return RunHandle(handle.id, entry.task, handle.is_cached, token)


def trigger_blocking(
    owner: Blocking | None, entry: Entry, connection: "Connection[Any] | None" = None
) -> RunHandle[Any]:
    """Start a run from code without a loop."""
    if connection is not None:
        refuse_client(owner)
        options = trigger_options(entry.options)
        environment, parent = _transactional.surroundings()
        engine = _transactional.engine()
        return _handle(
            entry.task,
            engine.trigger_blocking(
                connection, environment, entry.task, entry.payload, options, parent
            ),
        )
    runtime = _context.current() if owner is None else None
    if runtime is not None:
        options = trigger_options(entry.options)
        key = request_key()
        return _handle(
            entry.task, runtime.trigger_blocking(entry.task, entry.payload, options, key)
        )
    owner = owner or _default.blocking()
    return owner.run(trigger(owner.client, entry))


def request_key() -> str:
    """Return a name for one call, under which it may be repeated."""
    return str(uuid.uuid4())


def key_of(idempotency_key: str | Sequence[str] | None) -> str | None:
    """Return the idempotency key of a batch as it travels."""
    return None if idempotency_key is None else idempotency_keys.create(idempotency_key)


def refuse_client(client: object | None) -> None:
    """Refuse a connection beside a client. Raises ConfigurationError."""
    if client is not None:
        raise ConfigurationError(
            "a client triggers over HTTP, not on a connection: use the task's own calls, or the"
            " modules runwire.tasks and runwire.batch"
        )


def _handle(task: str, answer: Triggered) -> RunHandle[Any]:
    return RunHandle(answer.id, task, answer.is_cached, answer.public_access_token)
