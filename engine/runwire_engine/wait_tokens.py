"""Wait tokens as an executing run makes, completes and reads them, straight through the engine."""

import orjson

from runwire._context import CreatedToken, TokenRequest, WaitResult
from runwire.errors import InvalidValueError
from runwire_engine.children import Mint
from runwire_engine.claims import ClaimedRun
from runwire_engine.engine import Engine
from runwire_engine.errors import WaitpointNotFoundError
from runwire_engine.journal import Place, Step, key_of
from runwire_engine.patience import patiently
from runwire_engine.waitpoints import NewWaitpoint, WaitpointRow

# Of the key that makes an id of a place.
_ID_LENGTH = 40


class WaitTokens:
    """The wait tokens of one environment."""

    def __init__(self, engine: Engine, environment_id: int, mint: Mint | None) -> None:
        self._waitpoints = engine.waitpoints
        self._environment_id = environment_id
        self._mint = mint

    async def create(self, run: ClaimedRun, place: Place, request: TokenRequest) -> CreatedToken:
        """Create the token of a place, which is the same one at each replay."""
        key = key_of(run.id, run.generation, place, "token")
        new = NewWaitpoint(
            id=f"waitpoint_{key[:_ID_LENGTH]}",
            timeout=request.timeout,
            timeout_at=request.timeout_at,
            idempotency_key=request.idempotency_key,
            idempotency_ttl=request.idempotency_key_ttl,
            tags=request.tags,
        )
        row, is_cached = await patiently(lambda: self._waitpoints.create(self._environment_id, new))
        return self._created(row.id, is_cached)

    def created(self, step: Step) -> CreatedToken:
        """Return a token that was created before."""
        return self._created(step.waitpoint_id or "", bool(step.cached_ids))

    async def require(self, token_id: str) -> None:
        """Raise InvalidValueError where there is no such token."""
        await self._row(token_id)

    async def result(self, token_id: str) -> WaitResult:
        """Return how a token was decided."""
        row = await self._row(token_id)
        error = None if row.error is None else orjson.loads(row.error)
        return WaitResult(bool(row.ok), row.output, row.output_type, error)

    async def complete(self, token_id: str, body: str | None) -> None:
        """Complete a token. Raises InvalidValueError where there is none."""
        try:
            await patiently(lambda: self._waitpoints.complete(self._environment_id, token_id, body))
        except WaitpointNotFoundError:
            raise _unknown(token_id) from None

    async def _row(self, token_id: str) -> WaitpointRow:
        row = await patiently(lambda: self._waitpoints.retrieve(self._environment_id, token_id))
        if row is None:
            raise _unknown(token_id)
        return row

    def _created(self, token_id: str, is_cached: bool) -> CreatedToken:
        if self._mint is None:
            return CreatedToken(token_id, is_cached, None, None)
        token = self._mint(self._environment_id, "waitpoint", token_id)
        url = self._mint(self._environment_id, "callback", token_id)
        return CreatedToken(token_id, is_cached, url, token)


def _unknown(token_id: str) -> InvalidValueError:
    return InvalidValueError(f"there is no wait token {token_id!r}", code="not_found")
