"""What is expected of a flush by what is remembered, and what the database is asked about."""

from datetime import date

import pytest

from runwire_engine.memory import PIECE_END, Expected, StreamMemory
from runwire_engine.placement import CHUNK_END, Append, AppendAnswer, RunFence, StreamState

RUN = "run_000000000000"
OTHER = "run_000000000001"
DAY = date(2026, 11, 25)
LIMIT = 1_000


def fence(run_id: str = RUN, status: str = "EXECUTING", execution: int = 1) -> RunFence:
    return RunFence(run_id, status, execution, DAY)


def stream(key: str = "log", *, next_seq: int = 5, ended: int | None = None) -> StreamState:
    return StreamState(7, RUN, key, DAY, next_seq, 100, 1, (), ended)


def own(*bodies: str, key: str = "log", execution: int = 1, end: bool = False) -> Append:
    return Append(RUN, key, bodies, execution=execution, attempt=1, end=end)


def remembering(run: RunFence | None = None, *streams: StreamState) -> StreamMemory:
    memory = StreamMemory()
    held = run or fence()
    memory.keep({held.id: held}, streams or (stream(),))
    return memory


def expected(memory: StreamMemory, *appends: Append) -> Expected:
    found = memory.expect(appends, stream_limit=LIMIT)
    assert found is not None
    return found


def test_chunks_go_on_where_the_last_flush_ended_and_that_is_remembered() -> None:
    memory = remembering()
    first = expected(memory, own("1", "2"), own("3"))
    assert first.answers == [AppendAnswer(5, 7), AppendAnswer(7, 8)]
    assert [before.next_seq for before in first.before] == [5]
    assert first.text == CHUNK_END.join("123")
    # Not stored, not remembered.
    assert expected(memory, own("1")).answers == [AppendAnswer(5, 6)]
    memory.keep({}, first.after)
    assert expected(memory, own("4")).answers == [AppendAnswer(8, 9)]


def test_a_piece_is_of_one_stream_and_one_writer() -> None:
    memory = remembering(None, stream("a"), stream("b"))
    foreign = Append(RUN, "a", ("2",), writer="backend")
    found = expected(memory, own("3", key="b"), own("1", key="a"), foreign, own("4", key="b"))
    assert [(stream.key, stretch.seq, stretch.by[2]) for stream, stretch in found.pieces] == [
        ("b", 5, None),
        ("a", 5, None),
        ("a", 6, "backend"),
    ]
    assert found.text == PIECE_END.join([CHUNK_END.join("34"), "1", "2"])


@pytest.mark.parametrize(
    "append",
    [
        own("1", key="unknown"),
        Append(OTHER, "log", ("1",), writer="backend"),
        Append(RUN, "log", ("1",), execution=1, writer=OTHER),
        own("1", execution=2),
        own("x" * LIMIT),
        own(""),
        own(f"1{CHUNK_END}"),
        own(f"1{PIECE_END}"),
        Append(RUN, "log", ("1",), writer=f"a{PIECE_END}"),
        Append(RUN, "log", ("1",), writer=""),
        Append(RUN, "log", ("1",), writer="backend", part="1"),
    ],
)
def test_what_is_unknown_refused_or_out_of_the_ordinary_is_left_to_the_database(
    append: Append,
) -> None:
    assert remembering().expect([own("0"), append], stream_limit=LIMIT) is None


def test_what_begins_a_lineage_or_takes_an_end_back_is_left_to_the_database() -> None:
    later = remembering(fence(execution=2))
    assert later.expect([own("1", execution=2)], stream_limit=LIMIT) is None
    ended = remembering(None, stream(ended=1))
    assert ended.expect([own("1")], stream_limit=LIMIT) is None


def test_what_was_not_stored_after_all_is_asked_about() -> None:
    memory = remembering(None, stream("a"), stream("b"))
    begun = expected(memory, own("1", key="a"))
    memory.keep({}, begun.after)
    memory.doubt(begun)
    assert (RUN, "a") in memory
    for key in ("a", "b"):
        assert memory.expect([own("1", key=key)], stream_limit=LIMIT) is None
    # Where another stream of that run stands is known still.
    memory.keep({RUN: fence()}, [])
    assert expected(memory, own("1", key="b")).answers == [AppendAnswer(5, 6)]
    assert memory.expect([own("1", key="a")], stream_limit=LIMIT) is None


def test_an_end_is_expected_too() -> None:
    found = expected(remembering(), own(end=True))
    assert found.pieces == []
    assert [stream.ended_execution for stream in found.after] == [1]
