"""What waits between tries, where something is tried again until it works."""

import random
from collections.abc import Iterator


def back_offs(first: float, longest: float) -> Iterator[float]:
    """Yield waits in seconds that double up to the longest, each with up to half taken off."""
    wait = first
    while True:
        yield wait * random.uniform(0.5, 1.0)
        wait = min(wait * 2, longest)
