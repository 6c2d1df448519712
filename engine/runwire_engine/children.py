"""Child runs: what an executing run triggers, straight through the engine."""

from collections.abc import Callable, Sequence

from runwire._context import Triggered, TriggeredBatch
from runwire.requests import BatchItem, TriggerOptions
from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine
from runwire_engine.new_runs import new_run
from runwire_engine.patience import patiently
from runwire_engine.triggers import Parent

# Mints a token that reads one run ("run", id) or one batch ("batch", id) of an environment.
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

    async def trigger_batch(
        self, parent: ClaimedRun, items: Sequence[BatchItem], idempotency_key: str | None
    ) -> TriggeredBatch:
        """Start a batch of child runs. Raises what `trigger` raises."""
        batches, environment_id = self._engine.batches, self._environment_id
        batch = await patiently(
            lambda: batches.create(environment_id, len(items), idempotency_key, _parent_of(parent))
        )
        # Also one of an earlier execution that died before its items were in.
        is_cached = batch.is_cached and batch.sealed
        if not is_cached:
            new = [
                (
                    item.index,
                    new_run(
                        item.task,
                        item.payload,
                        item.options,
                        parent=_parent_of(parent),
                        batch=(batch.id, item.index),
                    ),
                )
                for item in items
            ]
            await patiently(lambda: batches.add_items(environment_id, batch.id, new))
        return TriggeredBatch(batch.id, batch.run_count, is_cached, self._token("batch", batch.id))

    def _token(self, kind: str, target: str) -> str | None:
        return None if self._mint is None else self._mint(self._environment_id, kind, target)


def _parent_of(run: ClaimedRun) -> Parent:
    return Parent(run.id, run.execution)
