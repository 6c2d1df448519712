"""So many at once, and so many a second after that: a bucket that refills. [core]"""


class Allowance:
    """What may still be spent."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._counted_at = now

    def spend(self, now: float) -> bool:
        """Take one. Return False, and take nothing, where none is left."""
        earned = (now - self._counted_at) * self._rate
        self._left = min(self._burst, self._left + earned)
        self._counted_at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
