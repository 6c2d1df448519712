"""The hooks of a task: what is called around its function."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

Hook: TypeAlias = Callable[..., object]
HookT = TypeVar("HookT", bound=Hook)
