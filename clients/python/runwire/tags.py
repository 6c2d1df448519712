"""Tags of the executing run. Blocking twin: `tags.sync.add`."""

from collections.abc import Sequence

from runwire._context import require


class Sync:
    """The blocking twin, for `def` tasks."""

    def add(self, tags: str | Sequence[str]) -> None:
        """Add tags to the executing run; at most 10 in all. Raises NotInRunError outside of one."""
        require("tags.sync.add").add_tags_blocking(_several(tags))


async def add(tags: str | Sequence[str]) -> None:
    """Add tags to the executing run; at most 10 in all. Raises NotInRunError outside of one."""
    await require("tags.add").add_tags(_several(tags))


def _several(tags: str | Sequence[str]) -> list[str]:
    return [tags] if isinstance(tags, str) else list(tags)


sync = Sync()
