"""What the collector of garbage still does, and what it leaves alone."""

import gc
import weakref
from collections.abc import Generator

import pytest

from runwire_realtime.garbage import spare_what_stays


@pytest.fixture
def spared() -> Generator[None]:
    before = gc.get_threshold()
    spare_what_stays()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


class Knot:
    """Holds itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("spared")
def test_what_was_there_before_is_not_looked_at_again() -> None:
    assert gc.get_freeze_count() > len(gc.get_objects())


@pytest.mark.usefixtures("spared")
def test_what_is_made_afterwards_and_holds_itself_is_still_freed() -> None:
    knot = weakref.ref(Knot())
    gc.collect()
    assert knot() is None
