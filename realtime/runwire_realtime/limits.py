"""How much one connection, one run, one stream may cost this process. [core]"""

from dataclasses import dataclass

from runwire.wire import (
    AUTH_TIMEOUT,
    HEARTBEAT,
    MAX_CLIENT_FRAME_BYTES,
    MAX_EVENTS_BODY_BYTES,
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_SUBSCRIPTIONS,
)


@dataclass(frozen=True)
class HubLimits:
    """Every bound of the hub; the defaults are for production, tests make them small.

    What an operator may turn is in `hub_settings`.
    """

    subscriptions: int = MAX_SUBSCRIPTIONS
    client_frame_bytes: int = MAX_CLIENT_FRAME_BYTES
    events_body_bytes: int = MAX_EVENTS_BODY_BYTES
    # Inbound messages a second, and at once: a client that comes back subscribes to all it had.
    inbound_rate: float = 30.0
    inbound_burst: float = 250.0
    auth_seconds: float = AUTH_TIMEOUT
    heartbeat_seconds: float = HEARTBEAT
    # A socket that takes nothing for so long is closed; it resumes where it was.
    send_seconds: float = 10.0
    # `token_expiring` comes so long before.
    warning_seconds: float = 30.0
    # Between two cursors of a subscription.
    cursor_seconds: float = 1.0
    # What is said to one connection in so many words and not sent yet; beyond it is too slow.
    control_bytes: int = 4 * 1024 * 1024
    # Pages of a snapshot wait until less than this is left to be sent.
    page_room_bytes: int = 256 * 1024
    frame_bytes: int = MAX_FRAME_BYTES
    # What one run or stream may send before it is another one's turn.
    turn_bytes: int = 64 * 1024
    # Several changes of a run as one patch; larger, and the run is sent whole.
    patch_bytes: int = 32 * 1024
    # Changes of a run kept for its readers; who is further behind gets the run whole.
    steps_kept: int = 256
    steps_bytes: int = 64 * 1024
    # What is read of a run's history to tell it as it was.
    past_bytes: int = 4 * 1024 * 1024
    # Recent chunks kept for the readers of a stream, and of all streams; older ones are in the log.
    ring_bytes: int = 256 * 1024
    rings_bytes: int = 64 * 1024 * 1024
    # The text so far in one piece, with room for the message around it; more goes on as chunks.
    text_bytes: int = MAX_MESSAGE_BYTES - 4 * 1024
    # Such texts, read from the log and not put into a frame yet, of all connections.
    texts_held: int = 8
    # Whole runs that wait to be written to one connection.
    rows_held: int = 16
    # Runs in the snapshot of a tag or runs feed, the newest.
    feed_runs: int = 1000
    # Final runs that a feed still remembers; forgotten ones join again when they change.
    finals_kept: int = 1000
    # Runs of which a feed remembers, once they have left, how far their streams were read.
    left_kept: int = 1000
    # Runs that one connection follows at once.
    followed_runs: int = 10_000
    # Pages read from the log at the same time, for all connections.
    catch_up_reads: int = 8
    # Runs read with one statement.
    rows_per_read: int = 50
    connections: int = 10_000
    # Of one environment, and of one public token.
    tenant_connections: int = 5_000
    token_connections: int = 100
    # Sockets that have not shown a credential yet.
    strangers: int = 1_000
    # New connections a second, and at once.
    connect_rate: float = 200.0
    connect_burst: float = 1_000.0
    # A stopping server spreads its farewells over so long.
    drain_seconds: float = 10.0
