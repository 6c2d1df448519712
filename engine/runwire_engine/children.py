"""Child runs: what an executing run triggers, straight through the engine."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson

from runwire._context import ChildResult, ChildResults, Triggered, TriggeredBatch
from runwire.errors import ApiError, InvalidValueError
from runwire.requests import BatchItem, TriggerOptions
from runwire.wire import JsonObject
from runwire_engine.batches import BatchRow
from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine
from runwire_engine.journal import Place, Step, key_of
from runwire_engine.new_runs import new_run
from runwire_engine.patience import patiently
from runwire_engine.states import RunStatus
from runwire_engine.waits import RunResult
from runwire_engine.wanted_runs import NewRun, Parent

# Mints a token that reads one run ("run", id) or one batch ("batch", id) of an environment, one
# that completes one wait token ("waitpoint", id), or the address that does ("callback", id).
Mint = Callable[[int, str, str], str]


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
        """Start a child run. Raises UnknownTaskError, InvalidValueError, FencedError."""
        new = new_run(task, payload, options, request_key=request_key, parent=_parent_of(parent))
        result = await self._engine.runs.trigger(self._environment_id, new)
        return Triggered(result.id, result.is_cached, self._token("run", result.id))

    async def start(
        self,
        parent: ClaimedRun,
        place: Place,
        items: Sequence[BatchItem],
        batch: bool,
        idempotency_key: str | None,
    ) -> Step:
        """Start children that their parent will wait for, as the step at a place of its code.

        Once, however often that place is come by. Raises what `trigger` raises.
        """
        target = " ".join(dict.fromkeys(item.task for item in items))
        step = Step(*place, kind="batch" if batch else "run", target=target)
        key = _key(parent, place, step.kind, items)
        if batch:
            made = await self._make_batch(parent, items, idempotency_key, key, is_awaited=True)
            cached = made.run_ids if _may_be_cached(items, made.is_cached) else ()
            return replace(step, run_ids=made.run_ids, cached_ids=cached, batch_id=made.id)
        new = [
            replace(
                new_run(
                    item.task,
                    item.payload,
                    item.options,
                    request_key=f"{key}.{item.index}",
                    parent=_parent_of(parent),
                ),
                awaited=True,
            )
            for item in items
        ]
        answers = await self._engine.runs.trigger_many(self._environment_id, new)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        results = [answer for answer in answers if not isinstance(answer, Exception)]
        return replace(
            step,
            run_ids=tuple(result.id for result in results),
            cached_ids=tuple(result.id for result in results if result.is_cached),
        )

    async def results(self, step: Step) -> ChildResults:
        """Return how the children of a step ended, in order; they must be over."""
        found = await self._engine.waits.results(self._environment_id, step.run_ids)
        return ChildResults(
            step.batch_id,
            tuple(_result(id, found.get(id), id in step.cached_ids) for id in step.run_ids),
        )

    def triggered(self, step: Step) -> Triggered:
        """Return what a trigger led to that was done before."""
        (run_id,) = step.run_ids
        return Triggered(run_id, run_id in step.cached_ids, self._token("run", run_id))

    def triggered_batch(self, step: Step) -> TriggeredBatch:
        """Return what a trigger of a batch led to that was done before."""
        batch_id, run_ids = step.batch_id or "", step.run_ids
        token = self._token("batch", batch_id)
        return TriggeredBatch(batch_id, len(run_ids), bool(step.cached_ids), token, run_ids)

    async def trigger_batch(
        self,
        parent: ClaimedRun,
        place: Place,
        items: Sequence[BatchItem],
        idempotency_key: str | None,
    ) -> TriggeredBatch:
        """Start a batch of child runs, once for a place. Raises what `trigger` raises."""
        key = _key(parent, place, "trigger", items)
        batch = await self._make_batch(parent, items, idempotency_key, key)
        token = self._token("batch", batch.id)
        return TriggeredBatch(batch.id, batch.run_count, batch.is_cached, token, batch.run_ids)

    async def _make_batch(
        self,
        parent: ClaimedRun,
        items: Sequence[BatchItem],
        idempotency_key: str | None,
        request_key: str,
        *,
        is_awaited: bool = False,
    ) -> BatchRow:
        batches, environment_id = self._engine.batches, self._environment_id
        batch = await patiently(
            lambda: batches.create(
                environment_id,
                len(items),
                idempotency_key,
                _parent_of(parent),
                request_key=request_key,
            )
        )
        if batch.sealed:
            return batch
        # New, or of an execution that died before its items were in.
        try:
            new = [(item.index, _item(item, batch.id, parent, is_awaited)) for item in items]
            added = await patiently(lambda: batches.add_items(environment_id, batch.id, new))
        except (ApiError, InvalidValueError):
            # Refused: whoever follows the batch shall not wait for its items.
            await batches.add_items(environment_id, batch.id, [], end="aborted")
            raise
        run_ids = tuple(added.run_ids[item.index] for item in items)
        return replace(batch, run_ids=run_ids, sealed=added.sealed, is_cached=False)

    def _token(self, kind: str, target: str) -> str | None:
        return None if self._mint is None else self._mint(self._environment_id, kind, target)


def _key(parent: ClaimedRun, place: Place, kind: str, items: Sequence[BatchItem]) -> str:
    """Return a key that only a replay that asks for the same at the same place has.

    The payloads are part of it: code that does not come the same way rather does a thing twice than
    take one child for another.
    """
    body = hashlib.sha256(orjson.dumps([(item.task, item.payload) for item in items])).hexdigest()
    return key_of(parent.id, parent.generation, place, kind, body)


def _may_be_cached(items: Sequence[BatchItem], is_cached: bool) -> bool:
    """Whether runs of a batch may be others' children, or not know that they are waited for."""
    return is_cached or any(item.options.idempotency_key is not None for item in items)


def _result(id: str, run: RunResult | None, is_cached: bool) -> ChildResult:
    if run is None:
        error = {"name": "RunGoneError", "message": f"run {id} was deleted for its age"}
        return ChildResult(id, "", RunStatus.SYSTEM_FAILURE, None, None, error, is_cached)
    return ChildResult(
        id, run.task, run.status, run.output, run.output_type, _error_of(run), is_cached
    )


def _error_of(run: RunResult) -> JsonObject | None:
    if run.error is not None:
        error: JsonObject = orjson.loads(run.error)
        return error
    match run.status:
        case RunStatus.COMPLETED:
            return None
        case RunStatus.EXPIRED:
            return {"name": "RunExpiredError", "message": f"run {run.id} expired before it started"}
        case _:
            return {
                "name": f"Run{run.status.title().replace('_', '')}Error",
                "message": f"run {run.id} was {run.status.lower().replace('_', ' ')}",
            }


def _parent_of(run: ClaimedRun) -> Parent:
    return Parent(run.id, run.execution)


def _item(item: BatchItem, batch_id: str, parent: ClaimedRun, is_awaited: bool) -> NewRun:
    new = new_run(
        item.task,
        item.payload,
        item.options,
        parent=_parent_of(parent),
        batch=(batch_id, item.index),
    )
    return replace(new, awaited=is_awaited)
