"""Child runs: what an executing run triggers, straight through the engine."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from runwire._context import Triggered, TriggeredBatch
from runwire.durations import seconds
from runwire.errors import InvalidValueError, TaskError
from runwire.requests import BatchItem, QueueOption, TriggerOptions
from runwire.values import MAX_METADATA_BYTES, encode
from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine
from runwire_engine.runs import NewRun, Parent

# Mints a token that reads one run ("run", id) or one batch ("batch", id) of an environment.
Mint = Callable[[int, str, str], str]
IDEMPOTENCY_TTL: Final = 30 * 86_400.0
_UNBUILT: Final = ("debounce", "machine", "region", "lock_to_version")


class Children:
    """Triggers runs whose parent is an executing run."""

    def __init__(self, engine: Engine, environment_id: int, mint: Mint | None) -> None:
        self._engine = engine
        self._environment_id = environment_id
        self._mint = mint

    async def trigger(
        self,
        parent: ClaimedRun,
        task: str,
        payload: str | None,
        options: TriggerOptions,
        request_key: str,
    ) -> Triggered:
        """Start a child run. Raises UnknownTaskError, InvalidValueError."""
        new = _new_run(parent, task, payload, options, request_key=request_key)
        result = await self._engine.runs.trigger(self._environment_id, new)
        return Triggered(result.id, result.is_cached, self._token("run", result.id))

    async def trigger_batch(
        self, parent: ClaimedRun, items: Sequence[BatchItem], idempotency_key: str | None
    ) -> TriggeredBatch:
        """Start a batch of child runs."""
        batches, environment_id = self._engine.batches, self._environment_id
        batch = await batches.create(
            environment_id, len(items), idempotency_key, _parent_of(parent)
        )
        if not batch.is_cached:
            new = [
                (
                    item.index,
                    _new_run(
                        parent,
                        item.task,
                        item.payload,
                        item.options,
                        batch=(batch.id, item.index),
                    ),
                )
                for item in items
            ]
            await batches.add_items(environment_id, batch.id, new)
        return TriggeredBatch(
            batch.id, batch.run_count, batch.is_cached, self._token("batch", batch.id)
        )

    def _token(self, kind: str, target: str) -> str | None:
        return None if self._mint is None else self._mint(self._environment_id, kind, target)


def _parent_of(run: ClaimedRun) -> Parent:
    return Parent(run.id, run.execution)


def _new_run(
    parent: ClaimedRun,
    task: str,
    payload: str | None,
    options: TriggerOptions,
    *,
    request_key: str | None = None,
    batch: tuple[str, int] | None = None,
) -> NewRun:
    """Return the run that options ask for; the client has checked them one by one."""
    for name in _UNBUILT:
        if getattr(options, name) is not None:
            raise TaskError(f"the trigger option {name} is not offered yet")
    queue, limit = _queue(options.queue)
    delay_until, delay = _delay(options.delay)
    tags = [options.tags] if isinstance(options.tags, str) else options.tags or []
    return NewRun(
        task=task,
        payload=payload,
        payload_type=options.payload_type,
        queue=queue,
        concurrency_limit=limit,
        concurrency_key=options.concurrency_key or "",
        tags=tuple(dict.fromkeys(tags)),
        metadata=_metadata(options),
        delay_until=delay_until,
        delay=delay,
        ttl=_seconds(options.ttl),
        max_attempts=options.max_attempts,
        max_duration=options.max_duration,
        priority=options.priority or 0.0,
        idempotency_key=options.idempotency_key,
        idempotency_ttl=_seconds(options.idempotency_key_ttl) or IDEMPOTENCY_TTL,
        request_key=request_key,
        parent=_parent_of(parent),
        batch=batch,
        is_test=options.test,
    )


def _queue(queue: QueueOption | str | None) -> tuple[str | None, int | None]:
    if isinstance(queue, QueueOption):
        return queue.name, queue.concurrency_limit
    return queue, None


def _delay(delay: str | float | None) -> tuple[datetime | None, float | None]:
    if not isinstance(delay, str):
        return None, delay
    try:
        time = datetime.fromisoformat(delay)
    except ValueError:
        return None, seconds(delay)
    if time.tzinfo is None:
        raise InvalidValueError(f"delay: {delay!r} has no time zone", code="delay")
    return time.astimezone(UTC), None


def _seconds(value: str | float | None) -> float | None:
    return None if value is None else seconds(value)


def _metadata(options: TriggerOptions) -> str | None:
    if options.metadata is None:
        return None
    return encode(options.metadata, what="metadata", limit=MAX_METADATA_BYTES)
