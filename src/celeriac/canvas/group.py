"""group: tasks side by side.

┌ a
├ b          one message each, which know the group's id and their place in it; nothing waits for anything
└ c
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain as chained
from typing import TYPE_CHECKING, Any

from ..tasks.groups import GroupResult
from ..tasks.plan import Place
from ..tasks.result import AsyncResult
from ..tasks.signature import Signature, signature_of
from .workflow import Fresh, Workflow, revived

if TYPE_CHECKING:
    from ..tasks.plan import Plan

__all__ = ["group"]


@Signature.register_type()
class group(Workflow):
    """`group(a.s(1), b.s(2))` or `group(a.s(i) for i in items)`. Its result is a `GroupResult`: a list of theirs, in this order.

    A group directly in a group is part of it: `group(group(a, b), c)` has three members.
    """

    def __init__(self, *tasks: Any, app: Any = None, **options: Any) -> None:
        if len(tasks) == 1:
            (only,) = tasks
            tasks = (
                (only.clone(),)
                if isinstance(only, Signature) and not isinstance(only, group)
                else (only,)
                if isinstance(only, Mapping)
                else tuple(only)
            )
        super().__init__("celery.group", (), {"tasks": []}, options, subtask_type="group", app=app)
        self["kwargs"]["tasks"] = list(spliced(signature_of(task, app=app) for task in tasks))

    @property
    def tasks(self) -> list[Signature[Any]]:
        """Its members."""
        tasks: list[Signature[Any]] = self["kwargs"]["tasks"]
        return tasks

    @tasks.setter
    def tasks(self, tasks: Sequence[Signature[Any]]) -> None:
        self["kwargs"]["tasks"] = list(tasks)

    def __or__(self, other: Any) -> Any:
        if isinstance(other, Mapping):
            from .chord import chord

            return chord(self, signature_of(other, app=self._app), app=self._app)
        return NotImplemented

    def __call__(self, *partial_args: Any, **options: Any) -> Any:
        """Sends it; keywords are options, as in Celery."""
        return self.apply_async(partial_args, **options)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, route_name: str | None = None, **options: Any
    ) -> Any:
        """Sends all members; options are for each of them."""
        _refuse_links(options)
        return super().apply_async(args, kwargs, **options)

    # -- planning ------------------------------------------------------------------------------------------------------------------------

    def link(self, callback: Any) -> Any:
        """`callback` is sent when the first member has succeeded, without its result: as in Celery. What is to come after all of them belongs in a chord."""
        return self.tasks[0].link(signature_of(callback).clone().set(immutable=True))

    def link_error(self, errback: Any) -> Any:
        """Each member gets this errback."""
        return tuple(task.link_error(signature_of(errback).clone()) for task in self.tasks)

    def set_immutable(self, immutable: bool) -> None:
        for task in self.tasks:
            task.set_immutable(immutable)

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> group:
        """Each member starts `step` seconds after the one before it, the first after `start`; not later than `stop`."""
        countdown = start
        for task in self.tasks:
            task.set(countdown=countdown)
            countdown = countdown + step if stop is None else min(stop, countdown + step)
        return self

    # -- its normal form -----------------------------------------------------------------------------------------------------------------

    def _members(self, fresh_id: Fresh, *, each_one: bool = False) -> Iterator[Signature[Any]]:
        """The normal forms of its members, one by one. With `each_one`, each ends in one task, whose end is its own."""
        for task in self.tasks:
            yield self._member(task, fresh_id, each_one=each_one)

    def _member(self, task: Signature[Any], fresh_id: Fresh, *, each_one: bool) -> Signature[Any]:
        options = self._own_options()
        if options or self.args or self.immutable:
            task = task.clone(() if self.immutable else self.args)
            task._set_all(options)
            if self.immutable:
                task.set_immutable(True)
        normal = task._normal(fresh_id)
        return as_one(normal, fresh_id) if each_one else normal

    def _normal(self, fresh_id: Fresh, last_id: str | None = None) -> Signature[Any]:
        normal = group(app=self._app)
        normal.tasks = list(self._members(fresh_id))
        normal.options["task_id"] = last_id or self.options.get("task_id") or fresh_id()
        return normal

    def _become(self, normal: Signature[Any]) -> None:
        assert isinstance(normal, group)
        self.tasks = normal.tasks
        self["args"], self["options"] = (), normal.options

    def _write(self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        for index, member in enumerate(self.tasks):
            member._write(plan, self._place_of(place, index), args, kwargs)

    def _send(
        self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Signature[Any], AsyncResult[Any]]:
        sent = group(app=self._app)
        sent.options["task_id"] = self.options.get("task_id") or plan.fresh_id()
        results = self._send_members(plan, lambda index: sent._place_of(place, index), args, kwargs)
        return sent, GroupResult(sent.options["task_id"], results, app=self._known_app())

    def _send_members(
        self,
        plan: Plan,
        place_of: Callable[[int], Place],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        *,
        each_one: bool = False,
        begin: Callable[[Signature[Any]], None] | None = None,
    ) -> list[AsyncResult[Any]]:
        """Writes the members one by one: there may be many, and a copy of each is not needed. `begin` is called with the first of them before it is written."""
        results: list[AsyncResult[Any]] = []
        plain = not (self._own_options() or self.args or self.immutable)
        for index, task in enumerate(self.tasks):
            if plain and index and type(task) is Signature and not task["options"]:
                message = plan.add(task, args, kwargs or {}, place_of(index))
                results.append(AsyncResult(message.id, app=task._app or (task._type._app if task._type is not None else None)))
                continue
            member = self._member(task, plan.fresh_id, each_one=each_one)
            if begin is not None and not index:
                begin(member)
            member._write(plan, place_of(index), args, kwargs)
            results.append(member._result())
        return results

    def _place_of(self, place: Place, index: int) -> Place:
        return Place(joined=place.joined, group=self.options["task_id"], group_index=index)

    def _result(self, parent: AsyncResult[Any] | None = None) -> GroupResult:
        return GroupResult(self.options["task_id"], [member._result() for member in self.tasks], parent=parent, app=self._known_app())

    def _fed(self, args: tuple[Any, ...]) -> Signature[Any]:
        copy = self._copy()
        copy.tasks = [member._fed(args) for member in copy.tasks]
        return copy

    def _set_first(self, options: Mapping[str, Any]) -> None:
        self._set_all(options)

    def _set_all(self, options: Mapping[str, Any]) -> None:
        for member in self.tasks:
            member._set_all(options)

    def _tasks(self) -> Iterator[Signature[Any]]:
        return chained.from_iterable(member._tasks() for member in self.tasks)

    def _run_here(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any], *, sending: bool) -> GroupResult:
        results = [member._run_here(args, kwargs, options, sending=sending) for member in self.tasks]
        return GroupResult(self.options["task_id"], results, app=self._known_app())

    # -- as data --------------------------------------------------------------------------------------------------------------------------

    def _revive(self, clone: bool = False) -> None:
        self["kwargs"]["tasks"] = [revived(task, self._app, clone) for task in self["kwargs"]["tasks"]]

    def _parts(self) -> Iterator[Signature[Any]]:
        yield from self.tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"group([{', '.join(repr(task) for task in self.tasks[:100])}{', …' if len(self.tasks) > 100 else ''}])"


def spliced(tasks: Any) -> Iterator[Signature[Any]]:
    """These tasks; instead of a group, its members, in its place."""
    for task in tasks:
        if type(task) is Signature:
            yield task
            continue
        task = task._expanded()
        if isinstance(task, group) and not task.options and not task.args and not task.immutable:
            yield from spliced(task.tasks)
        elif isinstance(task, group):
            told = task._copy()
            options, told["options"] = told._own_options(), {}
            told._set_all(options)
            if task.immutable:
                told.set_immutable(True)
            yield from spliced(member if task.immutable or not task.args else member.clone(task.args) for member in told.tasks)
        else:
            yield task


def as_one(normal: Signature[Any], fresh_id: Fresh) -> Signature[Any]:
    """A normal form that ends in one task. Where it ends in a group, one more task gathers the group's results; so that whoever waits for it gets them as one list."""
    from .chain import chain, without_empty_headers
    from .chord import chord

    if isinstance(normal, chain):
        normal.tasks = [*normal.tasks[:-1], as_one(normal.tasks[-1], fresh_id)]
        return normal
    if isinstance(normal, chord):
        normal.body = as_one(normal.body, fresh_id)
        return normal
    if isinstance(normal, group):
        gather: Signature[Any] = Signature("celery.accumulate", (), {"index": 0}, {"task_id": fresh_id()}, app=normal._app)
        return without_empty_headers(chord(normal, gather, app=normal._app))
    return normal


def last_of(normal: Signature[Any]) -> Signature[Any]:
    """The task in which a normal form ends that ends in one."""
    from .chain import chain
    from .chord import chord

    while isinstance(normal, Workflow):
        assert isinstance(normal, (chain, chord))
        normal = normal.tasks[-1] if isinstance(normal, chain) else normal.body
    return normal


def _refuse_links(options: Mapping[str, Any]) -> None:
    if options.get("link") is not None:
        raise TypeError("A group has no end that a link could come after: use a chord, group(…) | callback.")
    if options.get("link_error") is not None:
        raise TypeError("Give link_error to the members of a group, group(…).on_error(errback), or use a chord.")
