"""Signature: one planned call of a task, with its arguments and options. A dict, as it stands in messages.

    {"task", "args", "kwargs", "options", "subtask_type", "immutable"}

What is made of several signatures (chain, group, chord) is in `canvas`, and registers itself here by its `subtask_type`. The methods that such a one has differently are
the last section of the class: each signature brings itself into a normal form, writes itself into a plan, and runs itself here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from .registry import find_current_app
from .result import AsyncResult, EagerResult

if TYPE_CHECKING:
    from .plan import Place, Plan
    from .task import App, Task

R = TypeVar("R")
S = TypeVar("S", bound="Signature[Any]")


class Signature(dict[str, Any], Generic[R]):
    """A planned call. Calling a method that changes nothing but the plan returns the signature itself, so that calls can be chained: `add.s(2).set(queue="fast")`."""

    TYPES: ClassVar[dict[str, type[Signature[Any]]]] = {}

    _app: App | None
    _type: Task[..., Any] | None

    def __init__(
        self,
        task: Task[..., Any] | str | Mapping[str, Any] | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        type: Task[..., Any] | None = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: App | None = None,
        **more_options: Any,
    ) -> None:
        self._app = app
        self._type = type
        if isinstance(task, Mapping):
            super().__init__(task)
            self.setdefault("args", ())
            self.setdefault("kwargs", {})
            self.setdefault("options", {})
            self.setdefault("subtask_type", None)
            self.setdefault("immutable", False)
            return
        if task is None or isinstance(task, str):
            name = task
        else:
            name = task.name
            self._type = task
        super().__init__(
            task=name,
            args=tuple(args or ()),
            kwargs=dict(kwargs or {}),
            options={**(options or {}), **more_options},
            subtask_type=subtask_type,
            immutable=immutable,
        )

    @classmethod
    def register_type(cls, name: str | None = None) -> Callable[[type[S]], type[S]]:
        """Class decorator: signatures with this `subtask_type` are revived as this class."""

        def register(kind: type[S]) -> type[S]:
            cls.TYPES[name or kind.__name__] = kind
            return kind

        return register

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: App | None = None) -> Signature[Any]:
        """A signature as it came out of a message, with its methods back."""
        kind = d.get("subtask_type")
        target = cls.TYPES.get(kind) if kind else None
        if target is None or target is cls:
            return Signature(d, app=app)
        if target.from_dict.__func__ is Signature.from_dict.__func__:  # type: ignore[attr-defined]
            return target(d, app=app)
        return target.from_dict(d, app=app)

    # -- its parts -----------------------------------------------------------------------------------------------------------------

    @property
    def task(self) -> str:
        name: str = self["task"]
        return name

    name = task

    @property
    def args(self) -> Any:
        return self["args"]

    @property
    def kwargs(self) -> dict[str, Any]:
        kwargs: dict[str, Any] = self["kwargs"]
        return kwargs

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = self["options"]
        return options

    @property
    def subtask_type(self) -> str | None:
        return self.get("subtask_type")

    @property
    def immutable(self) -> bool:
        return bool(self.get("immutable"))

    @immutable.setter
    def immutable(self, value: bool) -> None:
        self["immutable"] = value

    @property
    def id(self) -> str | None:
        """The id that its task will have, once that is decided."""
        return self.options.get("task_id")

    @property
    def app(self) -> App:
        if self._app is not None:
            return self._app
        return self._type.app if self._type is not None else find_current_app()

    @property
    def type(self) -> Task[..., Any]:
        """The task. Raises NotRegistered when the app has none of that name."""
        return self._type or self.app.tasks[self.task]

    # -- planning ------------------------------------------------------------------------------------------------------------------

    def clone(self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> Signature[R]:
        """A copy, with further arguments before its own. An immutable one takes only the options."""
        args, kwargs, merged = self._merge(args, kwargs, options)
        copy = self._copy()
        copy["args"], copy["kwargs"], copy["options"] = args, kwargs, merged
        return copy

    partial = clone

    def _copy(self: S) -> S:
        copy = self.__class__.__new__(self.__class__)
        dict.update(copy, self)
        copy.__dict__.update(self.__dict__)
        options = dict(self.options)
        for name in ("link", "link_error"):
            if isinstance(options.get(name), (list, tuple)):
                options[name] = list(options[name])
        copy["kwargs"], copy["options"] = dict(self.kwargs), options
        return copy

    def _merge(
        self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: Mapping[str, Any], force: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        own_options = dict(self.options)
        for name, value in options.items():
            if name in ("link", "link_error"):
                own_options[name] = [*_as_list(own_options.get(name)), *_as_list(value)]
            else:
                own_options[name] = value
        if self.immutable and not force:
            return tuple(self.args), dict(self.kwargs), own_options
        return (*(args or ()), *self.args), {**self.kwargs, **(kwargs or {})}, own_options

    def set(self: S, immutable: bool | None = None, **options: Any) -> S:
        """Sets options of the call, and `immutable`. A name with None is set too."""
        if immutable is not None:
            self.immutable = immutable
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        self.immutable = immutable

    def link(self, callback: Any) -> Any:
        """`callback` is sent after this task has succeeded, with its result as the first argument. Returns `callback`."""
        self._add_link("link", callback)
        return callback

    def link_error(self, errback: Any) -> Any:
        """`errback` is called or sent after this task has failed. Returns `errback`."""
        self._add_link("link_error", errback)
        return errback

    def on_error(self: S, errback: Any) -> S:
        """As `link_error`, but returns this signature."""
        self.link_error(errback)
        return self

    def _add_link(self, name: str, signature: Any) -> None:
        links = _as_list(self.options.get(name))
        if signature not in links:
            links.append(signature)
        self.options[name] = links

    def flatten_links(self) -> list[Any]:
        """This signature and all that is linked to it, and to those."""
        flat: list[Any] = [self]
        for linked in _as_list(self.options.get("link")):
            flat.extend(signature_of(linked, app=self._app).flatten_links())
        return flat

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> AsyncResult[R]:
        """Decides the id of the task now, and returns its result."""
        options = self.options
        task_id: str | None = options.get("task_id") or _id
        if task_id is None:
            from ..core.ids import new_id

            task_id = new_id()
        options["task_id"] = task_id
        for name, value in (
            ("root_id", root_id),
            ("parent_id", parent_id),
            ("group_id", group_id),
            ("chord", chord),
            ("group_index", group_index),
        ):
            if value is not None and not (name == "group_id" and options.get(name)):
                options[name] = value
        return AsyncResult(task_id, app=self._app or (self._type._app if self._type is not None else None))

    _freeze = freeze

    def replace(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
    ) -> Signature[R]:
        """A copy with these instead of its own."""
        copy = self.clone()
        if args is not None:
            copy["args"] = tuple(args)
        if kwargs is not None:
            copy["kwargs"] = dict(kwargs)
        if options is not None:
            copy["options"] = dict(options)
        return copy

    # -- calling -------------------------------------------------------------------------------------------------------------------

    def delay(self, *partial_args: Any, **partial_kwargs: Any) -> AsyncResult[R]:
        """Sends it, with further arguments before its own."""
        return self.apply_async(partial_args, partial_kwargs)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, route_name: str | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Sends it; `options` go before its own."""
        args, kwargs, options = self._merge(args, kwargs, options)
        task = self._find_task()
        if task is not None:
            result: AsyncResult[R] = task.apply_async(args, kwargs, **options)
            return result
        sent: AsyncResult[R] = self.app.send_task(self.task, args, kwargs, **options)
        return sent

    async def adelay(self, *partial_args: Any, **partial_kwargs: Any) -> AsyncResult[R]:
        return await self.aapply_async(partial_args, partial_kwargs)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        import asyncio

        return await asyncio.to_thread(self.apply_async, args, kwargs, **options)

    def apply(self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any) -> EagerResult[R]:
        """Runs it here."""
        args, kwargs, options = self._merge(args, kwargs, options)
        return self.type.apply(args, kwargs, **options)

    def __call__(self, *partial_args: Any, **partial_kwargs: Any) -> Any:
        """Calls the task as a plain function."""
        args, kwargs, _ = self._merge(partial_args, partial_kwargs, {})
        return self.type(*args, **kwargs)

    def __invert__(self) -> R:
        """`~sig`: sends it and waits for its result."""
        return self.apply_async().get()

    def __or__(self, other: Any) -> Any:
        """`a | b`: first this, then `b` with its result."""
        if isinstance(other, Mapping):
            kind: Any = self.TYPES["chain"]
            return kind(self, signature_of(other, app=self._app), app=self._app)
        return NotImplemented

    __ior__ = __or__

    def _find_task(self) -> Task[..., Any] | None:
        return self._type if self._type is not None else self.app.tasks.get(self.task)

    # -- as part of a workflow -------------------------------------------------------------------------------------------------------

    def _normal(self, fresh_id: Callable[[], str], last_id: str | None = None) -> Signature[Any]:
        """A copy in which every task has its id (`last_id` is that of the last one), and which has one of these forms:

        a task · a chain of tasks whose last step may be a group or a chord · a group of what is not a group · a chord with a header that is not empty.
        """
        copy = self._copy()
        options = copy.options
        if last_id is not None:
            options["task_id"] = last_id
        elif options.get("task_id") is None:
            options["task_id"] = fresh_id()
        return copy

    def _write(self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        """Writes the messages and joins of a normal form into `plan`. `args` and `kwargs` go before its own."""
        plan.add(self, args, kwargs or {}, place)

    def _send(
        self, plan: Plan, place: Place, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> tuple[Signature[Any], AsyncResult[Any]]:
        """`_normal` and `_write` in one: the normal form, and the result that it will have."""
        normal = self._normal(plan.fresh_id)
        normal._write(plan, place, args, kwargs)
        return normal, normal._result()

    def _result(self, parent: AsyncResult[Any] | None = None) -> AsyncResult[Any]:
        """The result of a normal form; `parent` is that of what comes before it."""
        app = self._app or (self._type._app if self._type is not None else None)
        return AsyncResult(self.options["task_id"], app=app, parent=parent)

    def _single(self, fresh_id: Callable[[], str]) -> Signature[Any]:
        """Its normal form, ending in one task."""
        return self._normal(fresh_id)

    def _expanded(self) -> Signature[Any]:
        """The signature that it stands for."""
        return self

    def _fed(self, args: tuple[Any, ...]) -> Signature[Any]:
        """A copy of a normal form that has these arguments already, and takes no others."""
        copy = self._copy()
        if not self.immutable:
            copy["args"] = (*args, *self.args)
        copy["immutable"] = True
        return copy

    def _set_first(self, options: Mapping[str, Any]) -> None:
        """Options for those of its tasks that run first."""
        self.options.update(options)

    def _set_all(self, options: Mapping[str, Any]) -> None:
        """Options for all of its tasks."""
        self.options.update(options)

    def _tasks(self) -> Iterator[Signature[Any]]:
        """All tasks of a normal form."""
        yield self

    def _run_here(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any], *, sending: bool) -> AsyncResult[Any]:
        """Runs a normal form here. With `sending`, as `apply_async` does under `task_always_eager`."""
        if sending:
            return self.apply_async(args, kwargs, **options)
        return self.apply(args, kwargs, **options)

    # -- as data -------------------------------------------------------------------------------------------------------------------

    def election(self) -> Any:
        raise NotImplementedError("election() does not exist in Celeriac.")

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        args, kwargs, _ = self._merge(args, kwargs, {}, force=True)
        inner = ", ".join([*(repr(arg) for arg in args), *(f"{key}={value!r}" for key, value in kwargs.items())])
        return f"{self.task}({inner})"

    def __repr__(self) -> str:
        return self.reprcall()

    def __reduce__(self) -> tuple[Any, ...]:
        return signature_of, (dict(self),)

    def __copy__(self) -> Signature[R]:
        return self._copy()

    def __deepcopy__(self, memo: Any) -> Signature[R]:
        from copy import deepcopy

        copy = self._copy()
        for key, value in self.items():
            copy[key] = deepcopy(value, memo)
        memo[id(self)] = copy
        return copy

    def __json__(self) -> dict[str, Any]:
        return dict(self)


def _as_list(value: Any) -> list[Any]:
    if not value:
        return []
    if isinstance(value, Mapping):
        return [value]
    return list(value)


def signature_of(value: Any, app: App | None = None) -> Signature[Any]:
    """A Signature for what is one already, or a dict that came out of a message."""
    if isinstance(value, Signature):
        return value
    return Signature.from_dict(value, app=app)
