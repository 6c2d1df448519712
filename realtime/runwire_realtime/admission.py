"""Which new connections this process takes, before anything is known of them. [core]

Whoever is turned away gets a 503 before the handshake, which costs next to nothing, and comes back
later or goes elsewhere. What a credential may open besides is the hub's to count.
"""

from runwire.wire import ErrorCode
from runwire_realtime.allowance import Allowance
from runwire_realtime.errors import RefusedError
from runwire_realtime.limits import HubLimits


class Admission:
    """Counts who comes in."""

    def __init__(self, limits: HubLimits, now: float) -> None:
        # Set when the server is about to stop; nobody comes in any more.
        self.is_draining = False
        self._limits = limits
        self._allowance = Allowance(limits.connect_rate, limits.connect_burst, now)

    def admit(self, connections: int, now: float) -> None:
        """Let one more in beside so many. Raises RefusedError (unavailable)."""
        if self.is_draining:
            raise RefusedError(ErrorCode.UNAVAILABLE, "the server stops; connect to another")
        if connections >= self._limits.connections:
            raise RefusedError(ErrorCode.UNAVAILABLE, "no room for another connection")
        if not self._allowance.spend(now):
            raise RefusedError(ErrorCode.UNAVAILABLE, "too many connect at once")
