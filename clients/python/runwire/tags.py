"""Tags of the executing run. Blocking twin: `tags.sync.add`."""

from collections.abc import Sequence

from runwire._context import require
from runwire.errors import InvalidValueError

MAX_LENGTH = 128


class Sync:
    """The blocking twin, for `def` tasks."""

    def add(self, tags: str | Sequence[str]) -> None:
        """Add tags to the executing run, as `add` does."""
        require("tags.sync.add").add_tags_blocking(_several(tags))


async def add(tags: str | Sequence[str]) -> None:
    """Add tags to the executing run. Those of a call that would make it more than 10 are ignored,
    with a warning in the log. `ctx.run.tags` stays as it was.

    Raises NotInRunError outside of a run, InvalidValueError for what is no tag.
    """
    await require("tags.add").add_tags(_several(tags))


def _several(tags: str | Sequence[str]) -> list[str]:
    several = [tags] if isinstance(tags, str) else list(tags)
    for tag in several:
        if not 1 <= len(tag) <= MAX_LENGTH or any(_is_control(char) for char in tag):
            raise InvalidValueError(
                f"a tag is 1 to {MAX_LENGTH} characters, none of them a control character",
                code="tags",
            )
    return several


def _is_control(char: str) -> bool:
    return ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0


sync = Sync()
