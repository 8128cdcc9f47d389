"""chain: one task after the other, each with the result of the one before it.

    a → b → c          message a carries b and c; the settlement of a publishes b, which carries c

A chain that goes on after a group waits for all of it: the group and what comes after it are a chord.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import structs

from ..tasks.groups import GroupResult
from ..tasks.result import AsyncResult, EagerResult
from ..tasks.signature import Signature, signature_of
from .chord import chord
from .group import group
from .workflow import Fresh, Workflow, _listed, revived

if TYPE_CHECKING:
    from ..tasks.plan import Place, Plan
    from ..tasks.task import App

__all__ = ["chain"]


@Signature.register_type()
class chain(Workflow):
    """`chain(a.s(1), b.s(2))`, which is `a.s(1) | b.s(2)`: b gets a's result as its first argument, unless it is immutable (`b.si`).

    Its result is that of the last task; `result.parent` is that of the task before it.
    """

    def __init__(self, *tasks: Any, app: App | None = None, **options: Any) -> None:
        if len(tasks) == 1 and not isinstance(tasks[0], Mapping):
            tasks = tuple(tasks[0])
        super().__init__("celery.chain", (), {"tasks": []}, options, subtask_type="chain", app=app)
        self["kwargs"]["tasks"] = fold(signature_of(task, app=app) for task in tasks)

    @property
    def tasks(self) -> list[Signature[Any]]:
        """Its steps. A group that something comes after has become a chord."""
        tasks: list[Signature[Any]] = self["kwargs"]["tasks"]
        return tasks

    @tasks.setter
    def tasks(self, tasks: Iterable[Signature[Any]]) -> None:
        self["kwargs"]["tasks"] = list(tasks)

    def unchain_tasks(self) -> list[Signature[Any]]:
        """Copies of its steps, which know what was said of the chain: the last has its links, each its errbacks, the first all else."""
        steps = [step._copy() for step in self.tasks]
        if not steps:
            return []
        for callback in _listed(self.options.get("link")):
            steps[-1].link(callback)
        for errback in _listed(self.options.get("link_error")):
            for step in steps:
                step.link_error(errback)
        steps[0]._set_first(self._own_options())
        if self.immutable:
            steps[0].set_immutable(True)
        elif self.args:
            steps[0] = steps[0].clone(self.args)
        return steps

    def __or__(self, other: Any) -> Any:
        if isinstance(other, Mapping):
            return chain(self, signature_of(other, app=self._app), app=self._app)
        return NotImplemented

    # -- its normal form --------------------------------------------------------------------------------------------------------------

    def _normal(self, fresh_id: Fresh, last_id: str | None = None) -> Signature[Any]:
        steps = self.unchain_tasks()
        if not steps:
            raise ValueError("An empty chain cannot be sent: it has no task that could run.")
        last_id = last_id or self.options.get("task_id")
        normal = [step._normal(fresh_id) for step in steps[:-1]]
        normal.append(steps[-1]._normal(fresh_id, last_id))
        return sequence([part for step in fold(normal) for part in flat([without_empty_headers(step)])], self._app)

    def _become(self, normal: Signature[Any]) -> None:
        self.tasks = normal.tasks if isinstance(normal, chain) else [normal]
        self["args"] = ()
        self["options"] = {}

    def _write(self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        first, *rest = self.tasks
        first._write(plan, structs.replace(place, chain=(*place.chain, *reversed(rest))), args, kwargs)

    def _send(
        self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Signature[Any], AsyncResult[Any]]:
        if len(self.tasks) == 1 and not self.options and not self.args and not self.immutable:
            return self.tasks[0]._send(plan, place, args, kwargs)  # a single chord may be large
        return super()._send(plan, place, args, kwargs)

    def _result(self, parent: AsyncResult[Any] | None = None) -> AsyncResult[Any]:
        for step in self.tasks:
            parent = step._result(parent)
        assert parent is not None
        return parent

    def _fed(self, args: tuple[Any, ...]) -> Signature[Any]:
        copy = self._copy()
        copy.tasks[0] = copy.tasks[0]._fed(args)
        return copy

    def _set_first(self, options: Mapping[str, Any]) -> None:
        if self.tasks:
            self.tasks[0]._set_first(options)

    def _set_all(self, options: Mapping[str, Any]) -> None:
        for step in self.tasks:
            step._set_all(options)

    def set_immutable(self, immutable: bool) -> None:
        self.immutable = immutable

    def _tasks(self) -> Iterator[Signature[Any]]:
        for step in self.tasks:
            yield from step._tasks()

    def _run_here(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any], *, sending: bool) -> AsyncResult[Any]:
        result: AsyncResult[Any] | None = None
        for position, step in enumerate(self.tasks):
            if position:
                assert result is not None
                if not result.successful():
                    return _never_came(self.tasks[position:], result)
                args, kwargs = (result.get(disable_sync_subtasks=False),), {}
            done = step._run_here(args, kwargs, options if position == 0 else _lasting(options), sending=sending)
            first: AsyncResult[Any] = done
            while first.parent is not None:
                first = first.parent
            first.parent = result
            result = done
        assert result is not None
        return result

    # -- as data -----------------------------------------------------------------------------------------------------------------------

    def _revive(self, clone: bool = False) -> None:
        self["kwargs"]["tasks"] = [revived(task, self._app, clone) for task in self["kwargs"]["tasks"]]

    def _parts(self) -> Iterator[Signature[Any]]:
        yield from self.tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return " | ".join(repr(step) for step in self.tasks) or "<empty chain>"


# -- how steps come together ---------------------------------------------------------------------------------------------------------


def sequence(steps: list[Signature[Any]], app: App | None = None) -> Signature[Any]:
    """These steps, as one signature."""
    if len(steps) == 1:
        return steps[0]
    made = chain(app=app)
    made.tasks = steps
    return made


def flat(tasks: Iterable[Signature[Any]]) -> Iterator[Signature[Any]]:
    """These tasks; instead of a chain, its steps."""
    for task in tasks:
        if isinstance(task, chain):
            yield from flat(task.unchain_tasks())
        else:
            yield task._expanded()


def fold(tasks: Iterable[Signature[Any]]) -> list[Signature[Any]]:
    """The steps of a chain of these. A group that something comes after is a chord with that as its body; what comes after a chord goes on from its body."""
    steps: deque[Signature[Any]] = deque()
    for task in reversed(list(flat(tasks))):
        if steps and isinstance(task, (group, chord)):
            after = sequence(list(steps), task._app)
            if isinstance(task, group):
                whole = chord(task, after, app=task._app)
            else:
                whole = task._copy()
                whole.body = after if whole.body is None else sequence(fold([whole.body, after]), task._app)
            steps = deque([whole])
        else:
            steps.appendleft(task)
    return list(steps)


def without_empty_headers(form: Signature[Any]) -> Signature[Any]:
    """A chord without a header is its body, which gets an empty list and waits for nothing."""
    if not isinstance(form, chord) or form.body is None:
        return form
    form.body = without_empty_headers(form.body)
    return form if form.tasks else form.body._fed(([],))


def _lasting(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an eager run that are for all its tasks, and not only for the first."""
    return {name: value for name, value in options.items() if name == "throw"}


def _never_came(steps: list[Signature[Any]], before: AsyncResult[Any]) -> AsyncResult[Any]:
    """The result of the last of these steps, when what came before them did not succeed: they end as it did."""

    def ended(result: AsyncResult[Any]) -> AsyncResult[Any]:
        if result is before:
            return before
        parent = ended(result.parent) if result.parent is not None else None
        if isinstance(result, GroupResult):
            return GroupResult(result.id, [ended(member) for member in result.results], parent=parent, app=result._app)
        eager: EagerResult[Any] = EagerResult(result.id, before.result, before.state, traceback=before.traceback)
        eager.parent = parent
        return eager

    last = before
    for step in steps:
        last = step._result(last)
    return ended(last)
