"""Tasks that are known without a worker: announced, never executed."""

from runwire_engine.catalogue import TaskAnnouncement
from runwire_realtime.services import Services


async def announce(services: Services, *tasks: str) -> None:
    """Announce tasks in the server's environment, each with a queue of its own."""
    known = [TaskAnnouncement(id=task, queue=f"task/{task}") for task in tasks]
    await services.engine.catalogue.announce(services.environment_id, known)
