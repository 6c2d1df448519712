"""Which hooks a task can have, and what they may name."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

from runwire import TaskError, task, tasks
from runwire._hooks import OFFERED, Prepared, hooks_for, of_all
from runwire.tasks import AnyTask, Next, registry
from tests.support.recording_run import executing

KINDS = sorted(OFFERED)


@pytest.fixture(autouse=True)
def own_definitions() -> Iterator[None]:
    held = dict(registry())
    registry().clear()
    yield
    of_all.hooks.clear()
    registry().clear()
    for one in held.values():
        registry().add(one)


async def plain(next: Next) -> None: ...


def made(**hooks: Any) -> AnyTask:
    async def hooked() -> None: ...

    return cast(AnyTask, cast(Any, task)(id="a", **hooks)(hooked))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_of_each_kind_is_given_as_a_keyword_or_attached_later(kind: str) -> None:
    async def hook(payload: object, **others: object) -> None: ...

    given = made(**{kind: hook})
    attached = made()
    assert getattr(attached, kind)(hook) is hook
    for one in (given, attached):
        (prepared,) = one.hooks.of(kind)
        assert prepared.function is hook and prepared.wanted == OFFERED[kind]
    assert getattr(tasks, kind)(hook) is hook
    assert [each.function for each in hooks_for(given.hooks, kind)] == [hook, hook]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_names_what_its_kind_offers_and_nothing_else(kind: str) -> None:
    for name in OFFERED[kind]:
        namespace: dict[str, Any] = {}
        names = ", ".join({name: 1, "ctx": 1})
        exec(f"async def hook({names}, *, extra=1): ...", namespace)
        prepared = Prepared.of(kind, namespace["hook"])
        assert set(prepared.wanted) == {name, "ctx"}

    async def asking(colour: str) -> None: ...

    async def positional(*given: object) -> None: ...

    for wrong in (asking, positional):
        with pytest.raises(TaskError, match=f"the {kind} hook .* it may name payload, ctx"):
            made(**{kind: wrong})


def test_what_is_no_function_is_no_hook() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> AsyncIterator[int]:
        yield 1

    for wrong in (5, "on_success", generator, async_generator):
        with pytest.raises(TaskError, match="on_success"):
            made(on_success=wrong)


def test_a_task_has_one_hook_of_a_kind_and_all_tasks_have_many() -> None:
    defined = made(on_start=plain_def)
    assert defined.on_start(plain_def) is plain_def
    with pytest.raises(TaskError, match="task 'a' already has the on_start hook"):
        defined.on_start(lambda: None)
    tasks.on_start(plain_def)
    tasks.on_start(plain_def)  # a module that was loaded again
    tasks.on_start(lambda: None)
    tasks.on_start(lambda: None)
    assert len(of_all.hooks.of("on_start")) == 3


def plain_def() -> None: ...


def test_handle_error_is_another_name_of_catch_error() -> None:
    defined = made(handle_error=plain_def)
    assert [each.kind for each in defined.hooks.of("catch_error")] == ["catch_error"]
    with pytest.raises(TaskError, match="already has the catch_error hook"):
        defined.catch_error(lambda: None)
    with pytest.raises(TaskError, match="already has the catch_error hook"):
        made(handle_error=plain_def, catch_error=lambda: None)


def test_the_tasks_own_catch_error_comes_first_every_other_hook_last() -> None:
    for kind in KINDS:
        own, others = made(), [later(kind), later(kind)]
        for hook in others:
            getattr(tasks, kind)(hook)
        first = getattr(own, kind)(later(kind))
        order = [each.function for each in hooks_for(own.hooks, kind)]
        assert order == ([first, *others] if kind == "catch_error" else [*others, first])


def later(kind: str) -> Callable[..., Any]:
    async def hook() -> None: ...

    return hook


def test_a_middleware_around_an_async_task_is_async_and_a_def_one_may_be_def() -> None:
    def blocking(next: Callable[[], None]) -> None: ...

    for refused in (lambda: made(middleware=blocking), lambda: tasks.middleware(blocking)):
        with pytest.raises(TaskError, match="`async def` and awaits next"):
            refused()

    @task(id="b", middleware=blocking)
    def defined() -> None: ...

    assert defined.hooks.of("middleware") and made(middleware=plain).hooks.of("middleware")


def test_an_object_with_an_async_call_is_an_async_hook() -> None:
    class Hook:
        async def __call__(self, ctx: object) -> None: ...

    (prepared,) = made(on_success=Hook()).hooks.of("on_success")
    assert prepared.is_async and prepared.wanted == ("ctx",)


def test_hooks_are_not_attached_inside_a_run() -> None:
    defined = made()
    with executing():
        for attach in (defined.on_success, tasks.on_success):
            with pytest.raises(TaskError, match="not inside a run"):
                attach(plain_def)


def test_an_option_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="on_sucess"):
        made(**cast(Any, {"on_sucess": plain_def}))
