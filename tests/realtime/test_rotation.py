"""Some of many things at a time, each as often as the others."""

from runwire_realtime.rotation import Rotation


def test_everything_has_its_turn_before_anything_has_another() -> None:
    rotation = Rotation(lambda: range(5), 2)
    assert [rotation.take() for _ in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]


def test_what_comes_meanwhile_waits_for_the_next_round() -> None:
    items = ["a", "b", "c"]
    rotation = Rotation(lambda: items, 2)
    assert rotation.take() == ["a", "b"]
    items.insert(0, "new")
    assert rotation.take() == ["c"]
    assert rotation.take() == ["new", "a"]


def test_nothing_is_taken_where_there_is_nothing() -> None:
    assert Rotation(list[str], 2).take() == []
