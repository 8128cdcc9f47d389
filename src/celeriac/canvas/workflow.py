"""What chain, group and chord have in common: how they are sent, run here, and revived."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.ids import new_id
from ..tasks.plan import NOWHERE, Plan, publish
from ..tasks.registry import find_current_app
from ..tasks.request import current_request
from ..tasks.signature import Signature, signature_of

if TYPE_CHECKING:
    from ..tasks.result import AsyncResult
    from ..tasks.task import App

W = TypeVar("W", bound="Workflow")
Fresh = Callable[[], str]
"""Gives a new id."""


class Workflow(Signature[Any]):
    """A signature made of others. Sending it publishes what can start at once, and the joins that the rest waits for, in one step (up to 1000 messages)."""

    @classmethod
    def from_dict(cls: type[W], d: Mapping[str, Any], app: App | None = None) -> W:
        made = cls.__new__(cls)
        Signature.__init__(made, d, app=app)
        made["kwargs"], made["options"] = dict(made["kwargs"]), dict(made["options"])
        made._revive()
        return made

    def _revive(self, clone: bool = False) -> None:
        """Makes signatures of the dicts in it; with `clone`, copies of the signatures too."""
        raise NotImplementedError

    def _parts(self) -> Iterator[Signature[Any]]:
        """The signatures that it is made of."""
        raise NotImplementedError

    @property
    def app(self) -> App:
        """Its own app, or that of the first of its tasks that has one."""
        return self._known_app() or find_current_app()

    def _known_app(self) -> App | None:
        if self._app is not None:
            return self._app
        for part in self._parts():
            app = part._known_app() if isinstance(part, Workflow) else part._app or (part._type._app if part._type is not None else None)
            if app is not None:
                return app
        return None

    # -- sending it -----------------------------------------------------------------------------------------------------------------

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, route_name: str | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Sends it; `args` and `kwargs` go before those of the tasks that start. Returns the result of the whole.

        Raises: TypeError, EncodeError, EnqueueError, as `Task.apply_async`. Of more than 1000 messages, some may have been sent.
        """
        add_to_parent = options.pop("add_to_parent", True)
        policy = {name: options.pop(name, None) for name in ("retry", "retry_policy")}
        for name in ("producer", "publisher", "connection", "router"):
            options.pop(name, None)
        planned = self._with_options(options)
        app: Any = planned.app
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        parent = current_request()
        if app.settings.task_always_eager:
            result = planned._normal(new_id)._run_here(args, kwargs, {}, sending=True)
        else:
            plan = Plan(app.producer, parent=parent, checks=True, flush=lambda plan: publish(app, plan, **policy))
            _, result = planned._send(plan, NOWHERE, args, kwargs)
            publish(app, plan, **policy)
        if parent is not None and add_to_parent and (parent.running is None or parent.running.trail):
            parent.children.append(result)
        return result

    def apply(self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Runs it here, one task after the other, with the outcome that it would have had on workers."""
        throw = options.pop("throw", None)
        normal = self._with_options(options)._normal(new_id)
        return normal._run_here(tuple(args or ()), dict(kwargs or {}), {} if throw is None else {"throw": throw}, sending=False)

    def __call__(self, *partial_args: Any, **partial_kwargs: Any) -> Any:
        """Sends it: `chain(a, b)(1)`."""
        return self.apply_async(partial_args, partial_kwargs)

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> AsyncResult[Any]:
        """Decides the ids of all its tasks now, and returns its result."""
        normal = self._normal(new_id, _id)
        self._become(normal)
        return normal._result()

    _freeze = freeze

    def _become(self, normal: Signature[Any]) -> None:
        """Takes over the tasks of its own normal form."""
        raise NotImplementedError

    def _with_options(self: W, options: Mapping[str, Any]) -> W:
        """A copy with further options of a call."""
        if not options:
            return self
        copy = self._copy()
        options = dict(options)
        for callback in _listed(options.pop("link", None)):
            copy.link(signature_of(callback).clone())
        for errback in _listed(options.pop("link_error", None)):
            copy.link_error(signature_of(errback).clone())
        copy.options.update(options)
        return copy

    # -- planning -------------------------------------------------------------------------------------------------------------------

    def clone(self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """A copy, with copies of its tasks. `args` go before those of the tasks that start."""
        copy = self._copy()
        if args and not self.immutable:
            copy["args"] = (*args, *self.args)
        for name, value in options.items():
            copy.options[name] = [*_listed(copy.options.get(name)), *_listed(value)] if name in ("link", "link_error") else value
        return copy

    def _copy(self: W) -> W:
        copy = super()._copy()
        copy._revive(clone=True)
        return copy

    def _find_task(self) -> None:
        return None

    def _single(self, fresh_id: Fresh) -> Signature[Any]:
        from .group import as_one

        return as_one(self._normal(fresh_id), fresh_id)

    def _set_first(self, options: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _own_options(self) -> dict[str, Any]:
        """Its options that are for its tasks."""
        return {name: value for name, value in self.options.items() if name not in _CONSUMED}

    def __deepcopy__(self, memo: Any) -> Any:
        copy = self._copy()
        memo[id(self)] = copy
        return copy


_CONSUMED = frozenset({"task_id", "link", "link_error", "chord", "group_id", "group_index", "reply_to"})
"""Options that say something of the whole."""


def revived(value: Any, app: App | None, clone: bool) -> Signature[Any]:
    """A signature of what stands in a list of tasks."""
    found = signature_of(value, app=app)
    return found._copy() if clone and found is value else found


def _listed(value: Any) -> list[Any]:
    if not value:
        return []
    return [value] if isinstance(value, Mapping) else list(value)
