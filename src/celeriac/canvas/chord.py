"""chord: tasks side by side, and one that comes when all of them have ended.

    ┌ a ┐
    ├ b ┼─ body        a, b and c bear the id of a join, which holds the body's message; the settlement of the last one publishes it
    └ c ┘

A chord in a header ends when its body ends; then its body counts at the outer join.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import structs

from ..core.ids import new_id
from ..core.message import Join
from ..tasks.groups import GroupResult
from ..tasks.plan import Place
from ..tasks.result import AsyncResult
from ..tasks.signature import Signature, signature_of
from .group import group, spliced
from .workflow import Fresh, Workflow, revived

if TYPE_CHECKING:
    from ..tasks.plan import Plan

__all__ = ["chord"]


@Signature.register_type()
class chord(Workflow):
    """`chord([a.s(1), b.s(2)], body.s())`, which is `group(a.s(1), b.s(2)) | body.s()` and `chord([…])(body.s())`.

    The body gets the list of the results of its header, in the header's order. When a member fails, is revoked or dies, the body does not run: it ends with `ChordError`, and its
    errbacks run.
    """

    def __init__(
        self,
        header: Any,
        body: Any = None,
        task: str = "celery.chord",
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        app: Any = None,
        **options: Any,
    ) -> None:
        options.pop("subtask_type", None)
        immutable = options.pop("immutable", False)
        options = {**(options.pop("options", None) or {}), **options}
        if isinstance(header, Mapping):
            header = signature_of(header, app=app)
            if isinstance(header, group) and header.options.get("task_id"):
                options.setdefault("task_id", header.options["task_id"])
            header = [header]
        more = dict(kwargs or {})
        super().__init__(
            task,
            args,
            {"kwargs": more.pop("kwargs", more), "header": [], "body": None},
            options,
            subtask_type="chord",
            immutable=immutable,
            app=app,
        )
        self["kwargs"]["header"] = list(spliced(signature_of(member, app=app) for member in header))
        self["kwargs"]["body"] = None if body is None else signature_of(body, app=app)

    @property
    def tasks(self) -> list[Signature[Any]]:
        """The members of its header."""
        tasks: list[Signature[Any]] = self["kwargs"]["header"]
        return tasks

    @tasks.setter
    def tasks(self, tasks: Sequence[Signature[Any]]) -> None:
        self["kwargs"]["header"] = list(tasks)

    @property
    def body(self) -> Any:
        """What comes after the header."""
        return self["kwargs"]["body"]

    @body.setter
    def body(self, body: Signature[Any]) -> None:
        self["kwargs"]["body"] = body

    def __or__(self, other: Any) -> Any:
        if isinstance(other, Mapping):
            from .chain import fold, sequence

            return sequence(fold([self, signature_of(other, app=self._app)]), self._app)
        return NotImplemented

    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Sends it, with this body when it has none yet."""
        return self.apply_async((), {"body": body} if body is not None else {}, **options)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, route_name: str | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Sends the header; the body's message waits in its join. Options are for all tasks, `countdown` and `eta` for the header alone. Returns the body's result."""
        kwargs = dict(kwargs or {})
        body = kwargs.pop("body", None)
        return Workflow.apply_async(self._with_body(body), args, kwargs, **options)

    def apply(self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        kwargs = dict(kwargs or {})
        body = kwargs.pop("body", None)
        return Workflow.apply(self._with_body(body), args, kwargs, **options)

    def _with_options(self, options: Mapping[str, Any]) -> chord:
        last_id = options.get("task_id")
        copy = super()._with_options({name: value for name, value in options.items() if name != "task_id"})
        if last_id is not None and copy.body is not None:  # the result of a chord is that of its body
            copy = copy._copy()
            copy.body = copy.body._normal(new_id, last_id)
        return copy

    def _with_body(self, body: Any) -> chord:
        if body is None:
            return self
        copy = self._copy()
        copy.body = signature_of(body, app=self._app).clone()
        return copy

    # -- planning ------------------------------------------------------------------------------------------------------------------------

    def link(self, callback: Any) -> Any:
        """`callback` is sent after the body has succeeded."""
        self.body.link(callback)
        return callback

    def link_error(self, errback: Any) -> Any:
        """`errback` comes when the body fails, or a member of the header; with `task_allow_error_cb_on_chord_header` also for each member that fails."""
        errback = signature_of(errback)
        on_header = self.app.settings.task_allow_error_cb_on_chord_header
        for member in self.tasks:
            if on_header:
                member.link_error(errback.clone(immutable=True))
            elif isinstance(member, chord):
                member.link_error(errback)
        if self.body is not None:
            self.body.link_error(errback)
        return errback

    def set_immutable(self, immutable: bool) -> None:
        """For its header; the body is as it was."""
        for member in self.tasks:
            member.set_immutable(immutable)

    # -- its normal form -----------------------------------------------------------------------------------------------------------------

    def _header(self) -> group:
        """Its header, which knows what was said of the chord."""
        header = group(app=self._app)
        header.tasks = self.tasks
        header["args"], header.immutable = self.args, self.immutable
        header["options"] = self._own_options()
        return header

    def _normal_body(self, fresh_id: Fresh, last_id: str | None) -> Signature[Any]:
        if self.body is None:
            raise ValueError("A chord without a body cannot be sent: chord(header, body), or chord(header)(body).")
        body = self.body
        options = {name: value for name, value in self._own_options().items() if name not in ("countdown", "eta")}
        if options:
            body = body._copy()
            body._set_all(options)
        normal: Signature[Any] = body._normal(fresh_id, last_id)
        return normal

    def _normal(self, fresh_id: Fresh, last_id: str | None = None) -> Signature[Any]:
        from .chain import without_empty_headers

        header = list(self._header()._members(fresh_id, each_one=True))
        normal = chord([], self._normal_body(fresh_id, last_id), app=self._app)
        normal.tasks = header
        normal.options["task_id"] = self.options.get("task_id") or fresh_id()
        return without_empty_headers(normal)

    def _become(self, normal: Signature[Any]) -> None:
        if isinstance(normal, chord):
            self.tasks, self.body = normal.tasks, normal.body
            self["options"] = normal.options
        else:
            self.tasks, self.body, self["options"] = [], normal, {}
        self["args"] = ()

    def _write(self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        self._write_join(plan, place, self.tasks[0], len(self.tasks))
        for index, member in enumerate(self.tasks):
            member._write(plan, self._place_of(place, index), args, kwargs)

    def _send(
        self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Signature[Any], AsyncResult[Any]]:
        count = len(self.tasks)
        if not count:
            return super()._send(plan, place, args, kwargs)
        sent = chord([], self._normal_body(plan.fresh_id, None), app=self._app)
        sent.options["task_id"] = self.options.get("task_id") or plan.fresh_id()
        results = self._header()._send_members(
            plan,
            lambda index: sent._place_of(place, index),
            args,
            kwargs,
            each_one=True,
            begin=lambda first: sent._write_join(plan, place, first, count),
        )
        return sent, sent.body._result(GroupResult(sent.options["task_id"], results, app=self._known_app()))

    def _write_join(self, plan: Plan, place: Place, first: Signature[Any], count: int) -> None:
        """The body's messages stand in the join, and the joins of what the body is made of are opened with it."""
        id = self.options["task_id"]
        if plan.parent is None and plan.root_id is None:
            plan.root_id = next(first._tasks()).options["task_id"]
        body = self.body
        if body.task == "celery.accumulate" and not body.options.get("queue"):
            body.options["queue"] = plan.queue_of(next(first._tasks()))
        then = plan.part()
        body._write(then, structs.replace(place, joined=id))
        plan.joins += then.joins
        if then.messages:  # a body that is an empty group: nothing waits, so nothing counts
            plan.joins.append(Join(id=id, size=count, then=then.messages))

    def _place_of(self, place: Place, index: int) -> Place:
        id = self.options["task_id"]
        return Place(join=id, join_index=index, joined=place.joined, group=id, group_index=index)

    def _result(self, parent: AsyncResult[Any] | None = None) -> AsyncResult[Any]:
        header = GroupResult(self.options["task_id"], [member._result() for member in self.tasks], parent=parent, app=self._known_app())
        result: AsyncResult[Any] = self.body._result(header)
        return result

    def _fed(self, args: tuple[Any, ...]) -> Signature[Any]:
        copy = self._copy()
        copy.tasks = [member._fed(args) for member in copy.tasks]
        return copy

    def _set_first(self, options: Mapping[str, Any]) -> None:
        for member in self.tasks:
            member._set_all(options)

    def _set_all(self, options: Mapping[str, Any]) -> None:
        self.options.update(options)

    def _tasks(self) -> Iterator[Signature[Any]]:
        for member in self.tasks:
            yield from member._tasks()
        yield from self.body._tasks()

    def _run_here(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any], *, sending: bool) -> AsyncResult[Any]:
        from ..tasks.eager import collected_additions, join_failed

        with collected_additions() as added:
            results = [member._run_here(args, kwargs, options, sending=sending) for member in self.tasks]
            while added:
                results.append(added.pop(0)._run_here((), {}, options, sending=sending))
        header = GroupResult(self.options["task_id"], results, app=self._known_app())
        failed = next((result for result in results if not result.successful() and result.state != "IGNORED"), None)
        if failed is not None:
            result = join_failed(self.body, failed, options, sending=sending)
        else:
            values = [result.get(disable_sync_subtasks=False) for result in results]
            result = self.body._run_here((values,), {}, options, sending=sending)
        first = result
        while first.parent is not None:
            first = first.parent
        first.parent = header
        return result

    # -- as data --------------------------------------------------------------------------------------------------------------------------

    def _revive(self, clone: bool = False) -> None:
        kwargs = self["kwargs"]
        header = kwargs["header"]
        if isinstance(header, Mapping):  # as Celery writes a chord that was frozen
            header = spliced([signature_of(header, app=self._app)])
        kwargs["header"] = [revived(member, self._app, clone) for member in header]
        if kwargs.get("body") is not None:
            kwargs["body"] = revived(kwargs["body"], self._app, clone)
        else:
            kwargs["body"] = None

    def _parts(self) -> Iterator[Signature[Any]]:
        yield from self.tasks
        if self.body is not None:
            yield self.body

    def __len__(self) -> int:
        return len(self.tasks)

    def __bool__(self) -> bool:
        return True

    def __length_hint__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        header = ", ".join(repr(member) for member in self.tasks[:100])
        return f"chord([{header}{', …' if len(self.tasks) > 100 else ''}], {self.body!r})"
