"""What a credential allows: the scope grammar and the Grant made of it. [core]

    scope  = action ":" type [ ":" id ]        split at the first two colons only
    action = read | write | trigger | batchTrigger
    type   = runs | tasks | tags | batch | streams | inputStreams | waitpoints
    id     = 1 to 128 characters, none of them a control character; it may hold colons

Matching is equality of strings: no globs, no case folding, no Unicode normalisation. A scope
without an id stands for every thing of its type in the token's environment. Any one scope that
matches grants; there is no deny. A token with one scope outside the grammar is refused whole.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from runwire._stream_keys import is_reserved
from runwire_realtime.errors import ScopeError

Action: TypeAlias = Literal["read", "write", "trigger", "batchTrigger"]
Type: TypeAlias = Literal["runs", "tasks", "tags", "batch", "streams", "inputStreams", "waitpoints"]

MAX_SCOPES: Final = 64
MAX_ID: Final = 128  # as long as the longest tag or task id

_ACTIONS: Final[dict[str, Action]] = {action: action for action in get_args(Action)}
_TYPES: Final[dict[str, Type]] = {kind: kind for kind in get_args(Type)}


@dataclass(frozen=True)
class Scope:
    """One permission: an action on one thing, or on all things of a type."""

    action: Action
    type: Type
    id: str | None = None

    def __str__(self) -> str:
        tail = "" if self.id is None else f":{self.id}"
        return f"{self.action}:{self.type}{tail}"


def parse_scope(text: str) -> Scope:
    """Return the scope that text spells. Raises ScopeError outside the grammar."""
    head, *rest = text.split(":", 2)
    action = _ACTIONS.get(head)
    kind = _TYPES.get(rest[0]) if rest else None
    if action is None or kind is None:
        raise ScopeError(
            f"{text[:80]!r} is not a scope: write action:type[:id] with an action of "
            f"{', '.join(_ACTIONS)} and a type of {', '.join(_TYPES)}"
        )
    return Scope(action, kind, _id(rest[1], text) if len(rest) == 2 else None)


def parse_scopes(texts: Sequence[str]) -> tuple[Scope, ...]:
    """Return all the scopes, or raise ScopeError for the first bad one or for too many."""
    if len(texts) > MAX_SCOPES:
        raise ScopeError(f"{len(texts)} scopes are too many; at most {MAX_SCOPES} fit a token")
    return tuple(parse_scope(text) for text in texts)


def _id(value: str, text: str) -> str:
    if not 1 <= len(value) <= MAX_ID:
        raise ScopeError(f"the id in scope {text[:80]!r} must have 1 to {MAX_ID} characters")
    if any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or _surrogate(char) for char in value):
        raise ScopeError(f"the id in scope {text[:80]!r} holds a character that no id has")
    return value


def _surrogate(char: str) -> bool:
    return "\ud800" <= char <= "\udfff"


@dataclass(frozen=True)
class Visibility:
    """Which parts of a run a credential sees: also the key under which encoded bytes are shared."""

    # API keys and the signed-in dashboard: tracebacks and worker ids too.
    internal: bool
    # Only these run fields (and the ones never left out); None: all that the class may see.
    fields: frozenset[str] | None = None


FULL: Final = Visibility(internal=True)


@dataclass(frozen=True)
class Grant:
    """A verified credential: which environment it opens, and what it allows there."""

    environment_id: int
    scopes: frozenset[Scope] = frozenset()
    # An API key: may do everything in its environment.
    api_key: bool = False
    # Unix seconds; None for an API key.
    expires_at: float | None = None
    jti: str | None = None
    # Only these run fields and these streams; None: no narrowing.
    fields: frozenset[str] | None = None
    streams: frozenset[str] | None = None
    # May trigger once; the trigger writes jti down in its own transaction.
    one_time: bool = False
    # Minted for the signed-in dashboard: sees tracebacks as a key does.
    internal: bool = False

    def may_read_run(
        self, run_id: str, task: str, tags: Iterable[str], batch_ids: Iterable[str]
    ) -> bool:
        """Say whether this run may be read, by its id, task, tags or batches as they are now."""
        return self._may_run("read", run_id, task, tags, batch_ids)

    def may_write_run(
        self, run_id: str, task: str, tags: Iterable[str], batch_ids: Iterable[str]
    ) -> bool:
        """Say whether this run may be canceled, replayed, tagged and its metadata written."""
        return self._may_run("write", run_id, task, tags, batch_ids)

    def may_read_tag_feed(self, tags: Iterable[str]) -> bool:
        """Say whether the feed of the runs that carry all these tags may be followed.

        One readable tag is enough: every run of the feed carries it.
        """
        return self._may("read", "runs") or any(self._may("read", "tags", tag) for tag in tags)

    def may_read_batch(self, batch_id: str) -> bool:
        return self._may("read", "runs") or self._may("read", "batch", batch_id)

    def may_read_runs(self) -> bool:
        """Say whether every run of the environment may be read."""
        return self._may("read", "runs")

    def may_read_task(self, task: str) -> bool:
        """Say whether every run of this task may be read."""
        return self._may("read", "runs") or self._may("read", "tasks", task)

    def may_read_stream(self, key: str) -> bool:
        """Say whether a readable run's stream of this key may be read.

        Logs and input, as tracebacks, are for API keys and the signed-in dashboard alone; a token
        reads them only where it names them.
        """
        if self.streams is not None:
            return key in self.streams
        return self.api_key or self.internal or not is_reserved(key)

    def may_write_streams(
        self, run_id: str, task: str, tags: Iterable[str], batch_ids: Iterable[str]
    ) -> bool:
        """Say whether chunks may be appended to this run's streams from outside it."""
        return self._may("write", "streams", run_id) or self.may_write_run(
            run_id, task, tags, batch_ids
        )

    def may_reset_keys(self, task: str) -> bool:
        """Say whether idempotency keys of this task may be freed."""
        return self._may("write", "runs") or self._may("write", "tasks", task)

    def may_send_input(
        self, run_id: str, task: str, tags: Iterable[str], batch_ids: Iterable[str]
    ) -> bool:
        """Say whether input may be sent to this run."""
        return self._may("write", "inputStreams", run_id) or self.may_write_run(
            run_id, task, tags, batch_ids
        )

    def may_complete_waitpoint(self, waitpoint_id: str) -> bool:
        """Say whether this wait token may be completed."""
        return self._may("write", "waitpoints", waitpoint_id)

    def may_read_waitpoint(self, waitpoint_id: str) -> bool:
        return self._may("read", "waitpoints", waitpoint_id)

    def may_trigger(self, task: str) -> bool:
        return self._may("trigger", "tasks", task)

    def may_batch_trigger(self, task: str) -> bool:
        return self._may("batchTrigger", "tasks", task)

    def may_start_batches(self) -> bool:
        """Say whether a batch of some task may be created; its items are checked one by one."""
        return self.api_key or any(scope.action == "batchTrigger" for scope in self.scopes)

    @property
    def names_batches(self) -> bool:
        """Whether a single batch is named, so that it matters in which batches a run stands."""
        return any(scope.type == "batch" and scope.id is not None for scope in self.scopes)

    def visibility(self) -> Visibility:
        """Return the visibility class: equal for credentials that see the same of a run."""
        return Visibility(internal=self.api_key or self.internal, fields=self.fields)

    def _may(self, action: Action, kind: Type, id: str | None = None) -> bool:
        if self.api_key or Scope(action, kind) in self.scopes:
            return True
        return id is not None and Scope(action, kind, id) in self.scopes

    def _may_run(
        self,
        action: Action,
        run_id: str,
        task: str,
        tags: Iterable[str],
        batch_ids: Iterable[str],
    ) -> bool:
        return (
            self._may(action, "runs", run_id)
            or self._may(action, "tasks", task)
            or any(self._may(action, "tags", tag) for tag in tags)
            or any(self._may(action, "batch", batch_id) for batch_id in batch_ids)
        )
