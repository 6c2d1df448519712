"""One of our processes as it is, but that it notes when each chunk of the generator passed where.

    python -m tests.benchmarks.stamped FIFO server --port PORT
    python -m tests.benchmarks.stamped FIFO appender RUN_ID

Whoever opens the fifo for reading is told, a line each: place, stream, number of the chunk, when it
was handed over, when it passed (nanoseconds of the monotonic clock). A place is a call in the
product, which is wrapped from outside; what it is about is only kept, and read at the end.
"""

import asyncio
import re
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, TypeAlias

import uvloop

from runwire_engine.known_appends import KnownAppends
from runwire_engine.listener import Listener
from runwire_engine.streams import Streams
from runwire_realtime import delivery
from runwire_realtime.cli import main
from runwire_realtime.stream_topic import StreamTopic
from tests.benchmarks import appender

# As the generator writes it: stream, number, stamp.
EVENT: Final = re.compile(rb"#(\d{4})\.(\d{10})\.(\d{18})#")
Call: TypeAlias = Callable[..., Any]

_passed: list[tuple[str, int, object]] = []


def _note(
    owner: type | ModuleType, name: str, place: str, argument: int, *, after: bool = False
) -> None:
    """Note each call of a method or a function, and the argument that holds the chunks."""
    function: Call = getattr(owner, name)

    def noting(*arguments: Any) -> Any:
        if not after:
            _passed.append((place, time.monotonic_ns(), arguments[argument]))
        answer = function(*arguments)
        if after:
            _passed.append((place, time.monotonic_ns(), arguments[argument]))
        return answer

    setattr(owner, name, noting)


def _tell(fifo: str) -> None:
    with open(fifo, "w") as out:  # opens once somebody reads
        for place, at, holder in list(_passed):
            data = holder if isinstance(holder, bytes) else repr(holder).encode()
            for stream, number, stamp in EVENT.findall(data):
                out.write(f"{place} {int(stream)} {int(number)} {int(stamp)} {at}\n")


if __name__ == "__main__":
    fifo, role, *told = sys.argv[1:]
    _note(Streams, "put", "taken", 2)
    _note(KnownAppends, "begin", "begun", 3)
    _note(KnownAppends, "begin", "sent", 3, after=True)
    _note(Listener, "_hear", "heard", 2)
    _note(StreamTopic, "extend", "in the ring", 1, after=True)
    _note(delivery, "_write_to_all", "written", 1)
    threading.Thread(target=_tell, args=(fifo,), daemon=True).start()
    if role == "appender":
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(appender.main(*told))
    else:
        sys.argv = ["runwire", role, *told]
        main()
