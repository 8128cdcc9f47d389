"""map, starmap and chunks: one task called many times inside of one message, or of few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..tasks.signature import Signature, signature_of
from .group import group as Group
from .workflow import Fresh, Workflow

if TYPE_CHECKING:
    from ..tasks.plan import Place, Plan

__all__ = ["chunks", "xmap", "xstarmap"]


class _Calls(Signature[Any]):
    """One message, whose task calls another as a function, again and again. It goes where that one would go."""

    _name = ""
    _stars = ""

    def __init__(self, task: Any, it: Iterable[Any] = (), app: Any = None, **options: Any) -> None:
        if isinstance(task, Mapping) and task.get("task") == self._name:  # as it stands in a message
            super().__init__(task, app=app)
        else:
            called = task if isinstance(task, Mapping) else task.s()
            super().__init__(
                self._name,
                (),
                {"task": signature_of(called), "it": list(it)},
                options,
                subtask_type=type(self).__name__,
                immutable=True,
                app=app,
            )

    @property
    def app(self) -> Any:
        called = signature_of(self["kwargs"]["task"])
        return self._app or called.app

    def _write(self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        if not self.options.get("queue"):
            self.options["queue"] = plan.queue_of(self["kwargs"]["task"])
        plan.add(self, args, kwargs or {}, place)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, route_name: str | None = None, **options: Any
    ) -> Any:
        """Sends it: one message for all its calls."""
        if not (self.options.get("queue") or options.get("queue")):
            from ..tasks.plan import queue_of

            options["queue"] = queue_of(self.app.producer_without_broker, self["kwargs"]["task"])
        return super().apply_async(args, kwargs, **options)

    def __repr__(self) -> str:
        kwargs = self["kwargs"]
        return f"[{kwargs['task']['task']}({self._stars}x) for x in {repr(kwargs['it'])[:100]}]"


@Signature.register_type()
class xmap(_Calls):
    """`add_one.map([1, 2])`: `[add_one(1), add_one(2)]`, one after the other in one message."""

    _name = "celery.map"


@Signature.register_type()
class xstarmap(_Calls):
    """`add.starmap([(1, 2), (3, 4)])`: `[add(1, 2), add(3, 4)]`."""

    _name = "celery.starmap"
    _stars = "*"


@Signature.register_type()
class chunks(Workflow):
    """`add.chunks(zip(xs, ys), 100)`: a group of starmaps of 100 calls each."""

    def __init__(self, task: Any, it: Iterable[Any] = (), n: int = 1, app: Any = None, **options: Any) -> None:
        called = task if isinstance(task, Mapping) else task.s()
        super().__init__(
            "celery.chunks",
            (),
            {"task": signature_of(called), "it": it if isinstance(it, list) else list(it), "n": n},
            options,
            subtask_type="chunks",
            immutable=True,
            app=app,
        )

    def group(self) -> Group:
        """The group that it stands for."""
        kwargs = self["kwargs"]
        calls = iter(kwargs["it"])
        parts = iter(lambda: list(islice(calls, max(1, int(kwargs["n"])))), [])
        return Group([xstarmap(kwargs["task"], part, app=self._app) for part in parts], app=self._app)

    @classmethod
    def apply_chunks(cls, task: Any, it: Iterable[Any], n: int, app: Any = None) -> Any:
        return cls(task, it, n, app=app)()

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, route_name: str | None = None, **options: Any
    ) -> Any:
        return self._expanded().apply_async(**options)

    def __call__(self, **options: Any) -> Any:
        return self.apply_async(**options)

    def __or__(self, other: Any) -> Any:
        return self._expanded() | other

    def _expanded(self) -> Group:
        made = self.group()
        made["options"] = dict(self.options)
        return made

    def _normal(self, fresh_id: Fresh, last_id: str | None = None) -> Signature[Any]:
        return self._expanded()._normal(fresh_id, last_id)

    def _set_first(self, options: Mapping[str, Any]) -> None:
        self.options.update(options)

    def _revive(self, clone: bool = False) -> None:
        kwargs = self["kwargs"]
        kwargs["task"] = signature_of(kwargs["task"], app=self._app)

    def _parts(self) -> Iterator[Signature[Any]]:
        yield self["kwargs"]["task"]

    def __repr__(self) -> str:
        kwargs = self["kwargs"]
        return f"{kwargs['task']['task']}.chunks({repr(kwargs['it'])[:100]}, {kwargs['n']})"
