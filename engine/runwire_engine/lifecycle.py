"""The order of an attempt: its phases, and which one follows what. [core]

`NEXT` is the only place that says so. The shells (`loop_lifecycle`, `thread_lifecycle`) do what a
phase is, say how it went, and are told the next one.
"""

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Final, TypeAlias


class Phase(StrEnum):
    """What an attempt does, one after the other. Those named like hooks call them."""

    PAYLOAD = "payload"  # the stored payload is read
    MIDDLEWARE = "middleware"  # inwards: everything up to LEAVE happens in the innermost next()
    INIT = "init"
    START = "on_start"  # in the first attempt only
    START_ATTEMPT = "on_start_attempt"
    RUN = "run"  # the function
    OUTPUT = "output"  # what it returned is made JSON
    CATCH_ERROR = "catch_error"
    CANCEL = "on_cancel"
    SUCCESS = "on_success"
    FAILURE = "on_failure"
    COMPLETE = "on_complete"
    CLEANUP = "cleanup"
    LEAVE = "leave"  # outwards through the middleware
    OVER = "over"


class Event(Enum):
    """How a phase went."""

    DONE = "done"
    RAISED = "raised"  # an error after which another attempt makes sense
    REFUSED = "refused"  # an error that would be the same again, or was meant to be the end
    RETRY = "retry"  # catch_error: another attempt
    GIVE_UP = "give up"  # catch_error: none
    CANCELED = "canceled"  # somebody asked for it
    STOPPED = "stopped"  # the time is over, the worker stops, or the run is lost


class Ending(Enum):
    """What the attempt will have come to."""

    OPEN = "open"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRIED = "retried"
    CRASHED = "crashed"  # catch_error failed itself: nobody knows what was wanted
    CANCELED = "canceled"
    STOPPED = "stopped"


class _Close(Enum):
    """The next of CLEANUP, LEAVE and OVER that has not been."""

    CLOSE = "close"


_CLOSE: Final = _Close.CLOSE
_Step: TypeAlias = tuple[Phase | _Close, Ending | None]


class OutOfOrderError(Exception):
    """Ours: a phase cannot go like that."""


_STOPPED: Final[dict[Event, _Step]] = {
    Event.CANCELED: (Phase.CANCEL, Ending.CANCELED),
    Event.STOPPED: (_CLOSE, Ending.STOPPED),
}
_CAUGHT: Final[dict[Event, _Step]] = {
    Event.RAISED: (Phase.CATCH_ERROR, None),
    Event.REFUSED: (Phase.FAILURE, Ending.FAILED),
    **_STOPPED,
}


def _whatever(step: _Step) -> dict[Event, _Step]:
    """Errors of these hooks are told and change nothing."""
    return {event: step for event in (Event.DONE, Event.RAISED, Event.REFUSED)} | {
        Event.STOPPED: (_CLOSE, Ending.STOPPED)
    }


# What fails here fails an attempt that was a success until then.
_LATE: Final[dict[Event, _Step]] = {
    Event.DONE: (_CLOSE, None),
    Event.RAISED: (Phase.CATCH_ERROR, None),
    Event.REFUSED: (Phase.FAILURE, Ending.FAILED),
    Event.STOPPED: (_CLOSE, Ending.STOPPED),
}

# What follows which phase, and the ending that is decided there.
NEXT: Final[dict[Phase, dict[Event, _Step]]] = {
    Phase.PAYLOAD: {
        Event.DONE: (Phase.MIDDLEWARE, None),
        Event.RAISED: (Phase.OVER, Ending.FAILED),
        Event.REFUSED: (Phase.OVER, Ending.FAILED),
        **_STOPPED,
    },
    Phase.MIDDLEWARE: {Event.DONE: (Phase.INIT, None), **_CAUGHT},
    Phase.INIT: {Event.DONE: (Phase.START, None), **_CAUGHT},
    Phase.START: {Event.DONE: (Phase.START_ATTEMPT, None), **_CAUGHT},
    Phase.START_ATTEMPT: {Event.DONE: (Phase.RUN, None), **_CAUGHT},
    Phase.RUN: {Event.DONE: (Phase.OUTPUT, None), **_CAUGHT},
    Phase.OUTPUT: {
        Event.DONE: (Phase.SUCCESS, Ending.SUCCEEDED),
        Event.RAISED: (Phase.FAILURE, Ending.FAILED),
        Event.REFUSED: (Phase.FAILURE, Ending.FAILED),
        Event.STOPPED: (_CLOSE, Ending.STOPPED),
    },
    Phase.CATCH_ERROR: {
        Event.RETRY: (_CLOSE, Ending.RETRIED),
        Event.GIVE_UP: (Phase.FAILURE, Ending.FAILED),
        Event.RAISED: (_CLOSE, Ending.CRASHED),
        Event.REFUSED: (_CLOSE, Ending.CRASHED),
        Event.STOPPED: (_CLOSE, Ending.STOPPED),
    },
    Phase.CANCEL: _whatever((_CLOSE, None)),
    Phase.SUCCESS: _whatever((Phase.COMPLETE, None)),
    Phase.FAILURE: _whatever((Phase.COMPLETE, None)),
    Phase.COMPLETE: _whatever((_CLOSE, None)),
    Phase.CLEANUP: _LATE,
    Phase.LEAVE: _LATE,
    Phase.OVER: {},
}

# The function has not ended yet: an interruption stops what is going on.
UNDECIDED: Final = frozenset(
    {
        Phase.PAYLOAD,
        Phase.MIDDLEWARE,
        Phase.INIT,
        Phase.START,
        Phase.START_ATTEMPT,
        Phase.RUN,
    }
)


@dataclass(frozen=True, slots=True)
class Course:
    """Where an attempt is."""

    # Whether the run begins, so that on_start is called.
    is_first: bool
    phase: Phase = Phase.PAYLOAD
    ending: Ending = Ending.OPEN
    # Between MIDDLEWARE and LEAVE.
    inside: bool = False
    cleaned: bool = False


def after(course: Course, event: Event) -> Course:
    """Return where an attempt is after its phase went like that. Raises OutOfOrderError."""
    phase = course.phase
    if phase in (Phase.CLEANUP, Phase.LEAVE) and course.ending is not Ending.SUCCEEDED:
        # It fails already, or is retried: an error more changes nothing.
        event = Event.DONE
    step = NEXT[phase].get(event)
    if step is None:
        raise OutOfOrderError(f"{phase} cannot go like that: {event.value}")
    follows, ending = step
    course = replace(
        course,
        ending=ending or course.ending,
        inside=_inside(course, event),
        cleaned=course.cleaned or phase is Phase.CLEANUP,
    )
    return replace(course, phase=_close(course) if follows is _CLOSE else _skip(course, follows))


def _inside(course: Course, event: Event) -> bool:
    match course.phase:
        case Phase.MIDDLEWARE:
            return event is Event.DONE
        case Phase.LEAVE:
            return False
        case _:
            return course.inside


def _close(course: Course) -> Phase:
    # What is stopped has no time for cleanup.
    if course.inside and not course.cleaned and course.ending is not Ending.STOPPED:
        return Phase.CLEANUP
    return Phase.LEAVE if course.inside else Phase.OVER


def _skip(course: Course, phase: Phase | _Close) -> Phase:
    assert isinstance(phase, Phase)
    return Phase.START_ATTEMPT if phase is Phase.START and not course.is_first else phase
