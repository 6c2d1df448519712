"""The websocket protocol `runwire.v1`: every message, code and limit, once.

The server sends JSON arrays of server messages; the client sends one client message per frame.
Names on the wire are camelCase. A field that is absent means "nothing there"; in a `patch` a
field set to null was removed. docs/reference/protocol.md says the same in prose, tests/wire/ holds
one sample of every message, and clients/typescript/client/src/codes.ts is generated from the codes
here (`make wire`).

Messages about a run name the run, not the subscription: a run that two subscriptions of a socket
follow is sent once.
"""

from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal, NotRequired, TypeAlias, TypedDict

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

PROTOCOL = "runwire.v1"
BEARER_PREFIX = (
    "runwire.bearer."  # a token may be offered as the subprotocol `runwire.bearer.<token>`
)
SOCKET_PATH = "/realtime/v1/socket"
EVENTS_PATH = "/realtime/v1/events"

# Bounds that both sides know. Bytes, seconds, counts.
MAX_FRAME_BYTES = 256 * 1024  # a server frame, unless one message alone is larger
MAX_MESSAGE_BYTES = 1024 * 1024  # one server message
MAX_CLIENT_FRAME_BYTES = 64 * 1024
MAX_EVENTS_BODY_BYTES = 1024 * 1024  # what a request for server-sent events asks for, together
AUTH_TIMEOUT = 10.0  # seconds from the handshake to `auth`
HEARTBEAT = 15.0  # seconds of silence after which the server sends `hb`
SILENCE = 2.5 * HEARTBEAT  # seconds of silence after which a client counts the socket dead
MAX_SUBSCRIPTIONS = 100  # per socket
MAX_AWAIT = 30.0  # seconds a subscription may wait for a run that does not exist yet
LARGE_VALUE_BYTES = 16 * 1024  # larger values in tag, batch and runs feeds come as {"$large": …}
MAX_CHUNK_BYTES = 1024 * 1024

Json: TypeAlias = Any  # a JSON value: the one place where Any is allowed
JsonObject: TypeAlias = dict[str, Json]


class CloseCode(IntEnum):
    """Why a socket was closed: 4000–4399 reconnect and resume, 4400–4499 do not."""

    GOING_AWAY = 4001  # the server stops or restarts
    AUTH_TIMEOUT = 4002  # no `auth` within AUTH_TIMEOUT
    TOKEN_EXPIRED = 4003  # get a fresh token, then resume
    SLOW = 4008  # the socket did not drain in time
    OVERLOADED = 4009
    INSUFFICIENT_STATE = 4010  # the server lost its place; resume from the cursors
    RATE_LIMITED = 4029
    MALFORMED = 4400
    INVALID_TOKEN = 4401
    FORBIDDEN = 4403  # origin or kind of credential refused
    NOT_FOUND = 4404
    UNSUPPORTED_PROTOCOL = 4426
    REVOKED = 4499


# The websocket protocol's own code: a frame was over MAX_CLIENT_FRAME_BYTES, and would be again.
FRAME_TOO_LARGE = 1009


def may_reconnect(code: int) -> bool:
    """Say whether a socket closed with this code may be opened again and resumed."""
    return code != FRAME_TOO_LARGE and not 4400 <= code <= 4499


class ErrorCode(StrEnum):
    """What went wrong, in an `error` message or in an HTTP answer's `code`."""

    MALFORMED = "malformed"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    GONE = "gone"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class GapReason(StrEnum):
    """Why continuity could not be proven; a fresh snapshot follows."""

    EPOCH_CHANGED = "epoch_changed"
    RETENTION = "retention"
    AHEAD = "ahead"
    OVERFLOW = "overflow"
    SCOPE_CHANGED = "scope_changed"


class EofReason(StrEnum):
    """Why nothing will ever follow in a stream: the final status of its run, in lower case."""

    COMPLETED = "completed"
    CANCELED = "canceled"
    FAILED = "failed"
    CRASHED = "crashed"
    SYSTEM_FAILURE = "system_failure"
    EXPIRED = "expired"
    TIMED_OUT = "timed_out"


Mode: TypeAlias = Literal["latest", "every"]
# A stream position: the next seq wanted, "start", "latest" (only what is written from now on),
# or -N (the last N chunks).
StreamStart: TypeAlias = int | Literal["start", "latest"]
Seq: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]
Tag: TypeAlias = Annotated[str, Field(min_length=1, max_length=128)]


class _Message(BaseModel):
    """A client message. Unknown fields are ignored: a newer client may send them."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True
    )


class StreamRequest(_Message):
    """How one stream (or with the key "*" every stream) of the followed runs is read."""

    start: StreamStart = Field(default="start", alias="from")
    # text: the chunks so far, which must be JSON strings, come as one piece; live chunks follow.
    form: Literal["chunks", "text"] = Field(default="chunks", alias="as")


class RunFilter(_Message):
    """Which runs of the environment a `runs` subscription follows; nothing given: all."""

    task: list[str] | None = None
    status: list[str] | None = None
    # Only runs created in the last so many seconds, or since an ISO time.
    created_at: str | float | None = None


class Target(_Message):
    """What a subscription follows: exactly one of run, tags, batch, runs."""

    run: str | None = None
    tags: Annotated[list[Tag], Field(min_length=1, max_length=10)] | None = None  # all of them
    batch: str | None = None
    runs: RunFilter | None = None
    # With tags: only runs created in the last so many seconds ("1h" or a number) or since an ISO
    # time; the default is 24 hours.
    created_at: str | float | None = None


class Auth(_Message):
    type: Literal["auth"] = "auth"
    token: str = Field(max_length=4096)


class Subscribe(_Message):
    type: Literal["subscribe"] = "subscribe"
    sub: str = Field(min_length=1, max_length=64)  # the client's name for it, unique on the socket
    to: Target
    mode: Mode = "latest"
    fields: list[str] | None = None  # run fields wanted; none given: all the token may see
    cursor: str | None = Field(
        None, max_length=8192
    )  # where to resume; as handed out by the server
    wait: float | None = Field(
        None, alias="await", ge=0, le=MAX_AWAIT
    )  # seconds for an unknown run
    streams: dict[str, StreamRequest] | None = None
    # Where the client stands, by run and stream: the next seq wanted. A stream that is not named is
    # news, and comes from its start. None: the subscription begins.
    positions: dict[str, dict[str, Seq]] | None = None
    # With a cursor: the client holds no run. Each comes as it was there (`base`) before its news.
    whole: bool = False


class Unsubscribe(_Message):
    type: Literal["unsubscribe"] = "unsubscribe"
    sub: str


class Refetch(_Message):
    """Ask for the whole run again: a `patch` came that does not apply to the state held."""

    type: Literal["refetch"] = "refetch"
    run: str


class Ping(_Message):
    type: Literal["ping"] = "ping"


ClientMessage: TypeAlias = Annotated[
    Auth | Subscribe | Unsubscribe | Refetch | Ping, Field(discriminator="type")
]
CLIENT_MESSAGE: TypeAdapter[Auth | Subscribe | Unsubscribe | Refetch | Ping] = TypeAdapter(
    ClientMessage
)


class Ready(TypedDict):
    """The credential was accepted."""

    type: Literal["ready"]
    protocol: str
    epoch: str
    heartbeat: float


class Snapshot(TypedDict):
    """One page of what a subscription holds now; `more` says that another page follows."""

    type: Literal["snapshot"]
    sub: str
    runs: list[JsonObject]
    cursor: NotRequired[str]  # on the last page
    more: bool


class Base(TypedDict):
    """A run of a subscription as it was at its cursor: held from here on, and no news."""

    type: Literal["base"]
    sub: str
    run: JsonObject


class Live(TypedDict):
    """The snapshot (or the resume) is complete: what follows is news."""

    type: Literal["live"]
    sub: str


class Joined(TypedDict):
    """A run entered a subscription; its `run` message is already on this socket."""

    type: Literal["joined"]
    sub: str
    run: str


class Removed(TypedDict):
    type: Literal["removed"]
    sub: str
    run: str


class RunMessage(TypedDict):
    """A run, whole, as this connection may see it. Never an older revision than one sent before."""

    type: Literal["run"]
    run: JsonObject


# `from` is a keyword, hence the functional form. Applies only to a run held at revision `from`:
# set `set` (null removes the field), apply the metadata operations in order, then it is `revision`.
Patch = TypedDict(
    "Patch",
    {
        "type": Literal["patch"],
        "run": str,
        "from": int,
        "revision": int,
        "set": JsonObject,
        "metadata": NotRequired[list[JsonObject]],
    },
)


class Chunks(TypedDict):
    """Chunks seq, seq + 1, … of a stream; all by one writer."""

    type: Literal["chunks"]
    run: str
    stream: str
    seq: int
    data: list[Json]
    attempt: NotRequired[int]  # of the run's own execution
    writer: NotRequired[str]  # who wrote it, when it was not the run itself


class Text(TypedDict):
    """Everything before seq `upTo`, joined, in place of chunks for a reader that asked for it."""

    type: Literal["text"]
    run: str
    stream: str
    upTo: int
    value: str


class Attempt(TypedDict):
    """Another execution of the run writes from `fromSeq` on; the reader may start over there.

    It marks the restart, whatever its number: a run that was given back keeps its attempt.
    """

    type: Literal["attempt"]
    run: str
    stream: str
    attempt: int
    fromSeq: int


class End(TypedDict):
    """The writer of this execution is done; a later one may still write."""

    type: Literal["end"]
    run: str
    stream: str
    attempt: int
    next: int


class Eof(TypedDict):
    """Nothing will ever follow: the run is final. `next` is how many chunks there are."""

    type: Literal["eof"]
    run: str
    stream: str
    next: int
    reason: str


class Done(TypedDict):
    """Nothing more will come for this subscription; it is closed on the server."""

    type: Literal["done"]
    sub: str


class Cursor(TypedDict):
    """Everything up to here is on this socket: what to hand back to resume."""

    type: Literal["cursor"]
    sub: str
    cursor: str


class Gap(TypedDict):
    """Continuity is broken; a snapshot (or, for a stream, chunks from `next`) follows."""

    type: Literal["gap"]
    sub: str
    reason: str
    run: NotRequired[str]
    stream: NotRequired[str]
    next: NotRequired[int]


class State(TypedDict):
    """Whether the hub is in touch with the database. `since` is a time."""

    type: Literal["state"]
    state: Literal["live", "stale"]
    since: str


# `in` is a keyword. Seconds until the token ends; send `auth` with a fresh one.
TokenExpiring = TypedDict("TokenExpiring", {"type": Literal["token_expiring"], "in": float})


class ErrorMessage(TypedDict):
    """A request was refused. With `sub`, that subscription is closed; the socket lives."""

    type: Literal["error"]
    code: str
    message: str
    sub: NotRequired[str]


class Heartbeat(TypedDict):
    type: Literal["hb"]
    t: str


class Pong(TypedDict):
    type: Literal["pong"]


ServerMessage: TypeAlias = (
    Ready
    | Snapshot
    | Base
    | Live
    | Joined
    | Removed
    | RunMessage
    | Patch
    | Chunks
    | Text
    | Attempt
    | End
    | Eof
    | Done
    | Cursor
    | Gap
    | State
    | TokenExpiring
    | ErrorMessage
    | Heartbeat
    | Pong
)
