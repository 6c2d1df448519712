"""The blocking twins, under the names of the async ones, for scripts and `def` tasks.

from runwire.sync import runs, tasks

handle = tasks.trigger("write-story", {"topic": "tides"})
for run in runs.subscribe_to_run(handle.id):
    print(run.status)
"""

from runwire import _default
from runwire._sync import Runwire, SyncAuth, SyncQueues, SyncRuns, SyncSchedules
from runwire._sync_tasks import SyncBatches, SyncTasks
from runwire.idempotency_keys import SyncIdempotencyKeys
from runwire.metadata import sync as metadata
from runwire.retry import sync as retry
from runwire.streams import sync as streams
from runwire.tags import sync as tags
from runwire.wait import sync as wait

__all__ = [
    "Runwire",
    "auth",
    "batch",
    "idempotency_keys",
    "metadata",
    "queues",
    "retry",
    "runs",
    "schedules",
    "streams",
    "tags",
    "tasks",
    "wait",
]


def _no_client() -> None:
    """Say that the executing run goes first, and the environment decides elsewhere."""


tasks = SyncTasks(_no_client)
runs = SyncRuns(_default.blocking)
batch = SyncBatches(_default.blocking, _no_client)
idempotency_keys = SyncIdempotencyKeys(_default.blocking, _no_client)
queues = SyncQueues(_default.blocking)
auth = SyncAuth(_default.blocking)
schedules = SyncSchedules(_default.blocking)
