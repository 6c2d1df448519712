"""What a retry waits. [core]"""

from runwire._task_options import RetryOptions


def next_delay(
    options: RetryOptions, attempt: int, random: float, *, max_attempts: int | None = None
) -> float | None:
    """Return the seconds to wait after a failed attempt (from 1), or None to give up.

    `random` is uniform in [0, 1); `max_attempts`, where a run has its own, beats the options'.
    """
    if attempt >= (options.max_attempts if max_attempts is None else max_attempts):
        return None
    spread = 1.0 + random if options.randomize else 1.0
    return round(min(options.max_timeout, spread * _grown(options, attempt)), 3)


def _grown(options: RetryOptions, attempt: int) -> float:
    try:
        return options.min_timeout * options.factor ** (attempt - 1)
    except OverflowError:
        return options.max_timeout
