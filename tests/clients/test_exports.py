import runwire
from runwire import (
    auth,
    batch,
    locals,
    logger,
    metadata,
    queues,
    retry,
    runs,
    schedules,
    streams,
    sync,
    tasks,
    wait,
)


def test_the_package_offers_these_names() -> None:
    assert runwire.__all__ == [
        "AbortTaskRunError",
        "ApiError",
        "AsyncRunwire",
        "BatchTriggerError",
        "ConfigurationError",
        "ConflictError",
        "Context",
        "Event",
        "FencedError",
        "ForbiddenError",
        "InvalidValueError",
        "NotFoundError",
        "NotInRunError",
        "NotInTransactionError",
        "NotSetError",
        "Run",
        "Runwire",
        "RunwireError",
        "ScheduledTaskPayload",
        "Signal",
        "SubscriptionError",
        "SubtaskUnwrapError",
        "Task",
        "TaskError",
        "UnauthorizedError",
        "UnreachableError",
        "auth",
        "batch",
        "idempotency_keys",
        "locals",
        "logger",
        "metadata",
        "queue",
        "queues",
        "retry",
        "runs",
        "schedules",
        "schema_task",
        "streams",
        "tags",
        "task",
        "tasks",
        "wait",
    ]


def test_every_name_that_is_offered_is_there() -> None:
    inside = (locals, logger, metadata, retry, streams, wait)
    for module in (runwire, auth, batch, *inside, queues, runs, schedules, sync, tasks):
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing, module.__name__


def test_every_call_of_the_async_client_has_a_blocking_twin() -> None:
    with runwire.Runwire(api_url="http://127.0.0.1:1", access_token="t") as blocking:
        client = runwire.AsyncRunwire(api_url="http://127.0.0.1:1", access_token="t")
        for noun in (
            "tasks",
            "runs",
            "batch",
            "queues",
            "idempotency_keys",
            "streams",
            "auth",
            "schedules",
        ):
            assert public(getattr(client, noun)) <= public(getattr(blocking, noun)), noun
    for noun in ("tasks", "runs", "batch", "queues", "idempotency_keys", "auth", "schedules"):
        assert public(getattr(client, noun)) <= public(getattr(sync, noun)), noun


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")} - {
        "post",
        "post_input",
        "sink",
    }
