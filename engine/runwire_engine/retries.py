"""What a retry waits. [core]"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a run is tried, and what it waits in between. Times are seconds."""

    # The first attempt included.
    max_attempts: int = 3
    factor: float = 2.0
    min_timeout: float = 1.0
    max_timeout: float = 60.0
    # Spreads the retries of runs that failed together.
    randomize: bool = True


def next_delay(
    policy: RetryPolicy, attempt: int, random: float, *, max_attempts: int | None = None
) -> float | None:
    """Return the seconds to wait after a failed attempt (from 1), or None to give up.

    `random` is uniform in [0, 1); `max_attempts`, where a run has its own, beats the policy's.
    """
    if attempt >= (policy.max_attempts if max_attempts is None else max_attempts):
        return None
    spread = 1.0 + random if policy.randomize else 1.0
    return round(min(policy.max_timeout, spread * _grown(policy, attempt)), 3)


def _grown(policy: RetryPolicy, attempt: int) -> float:
    try:
        return policy.min_timeout * policy.factor ** (attempt - 1)
    except OverflowError:
        return policy.max_timeout
