"""Celeriac, the app: the one place where settings, tasks and engines meet.

    app = Celeriac("proj", broker="sqlite:///proj.db")

    @app.task
    def add(x: int, y: int) -> int: ...

Nothing is opened, read or imported before it is needed: settings at the first look at one, tasks when the app is *finalized* (somebody asks for `app.tasks`),
the engine with the first message.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from .canvas.signature import Signature, signature
from .contracts.broker import Broker
from .contracts.results import ResultBackend
from .core import events
from .core.errors import AlreadyRegistered, ImproperlyConfigured
from .core.routing import Router
from .core.serialize import encode_value
from .core.settings import SETTINGS, Settings, check_name, check_values, from_environ, read_settings
from .tasks import registry
from .tasks.groups import GroupResult as Group
from .tasks.producer import Outbox, Producer, safe_url
from .tasks.registry import Proxy, TaskRegistry, find_current_app, find_current_task
from .tasks.request import _current as _current_run
from .tasks.result import AsyncResult as Result
from .tasks.result import DisabledBackend
from .tasks.task import AsyncTask, define
from .tasks.task import Task as TaskBase

if TYPE_CHECKING:
    from .contracts.engine import Engine
    from .contracts.joins import Joins
    from .contracts.schedules import Schedules, SchedulingEngine
    from .contracts.steps import Steps
    from .tasks.control import Control
    from .tasks.entries import Entries

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=TaskBase[..., Any])

# One lock for everything that apps make lazily. A forked child starts with a fresh one: its parent's may be held by a thread that does not exist in it.
_lock = threading.RLock()


def _fresh_lock() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_fresh_lock)


# -- what the decorators return ------------------------------------------------------------------------------------------------


class TaskDecorator(Protocol):
    """`@app.task(…)`: makes a task of a function."""

    @overload
    def __call__(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fun: Callable[P, R], /) -> TaskBase[P, R]: ...


class BoundTaskDecorator(Protocol):
    """`@app.task(bind=True, …)`: the function's first argument is the task, and whoever calls does not give it."""

    @overload
    def __call__(self, fun: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fun: Callable[Concatenate[Any, P], R], /) -> TaskBase[P, R]: ...


@overload
def shared_task(fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def shared_task(fun: Callable[P, R], /) -> TaskBase[P, R]: ...
@overload
def shared_task(*, bind: Literal[True], **options: Any) -> BoundTaskDecorator: ...
@overload
def shared_task(*, bind: Literal[False] = False, **options: Any) -> TaskDecorator: ...
def shared_task(*args: Any, **options: Any) -> Any:
    """A task of whatever app there will be: for libraries, and for Django apps that do not know their project.

    It belongs to the current app each time it is used, and every app gets it when it is finalized.
    """

    def decorate(fun: Callable[..., Any]) -> TaskBase[..., Any]:
        task = _task_from_function(None, fun, options)
        registry.share(task)
        return task

    return _decorated(args, decorate, "shared_task")


def _decorated(args: tuple[Any, ...], decorate: Callable[[Any], Any], name: str) -> Any:
    if not args:
        return decorate
    if len(args) == 1 and callable(args[0]):
        return decorate(args[0])
    raise TypeError(f"@{name} takes options as keywords only, as in @{name}(bind=True); got {args!r}.")


def _task_from_function(app: Celeriac | None, fun: Callable[..., Any], options: Mapping[str, Any]) -> TaskBase[..., Any]:
    attributes = dict(options)
    bind = bool(attributes.pop("bind", False))
    base: type[TaskBase[..., Any]] | None = attributes.pop("base", None)
    name: str | None = attributes.pop("name", None)
    attributes.pop("lazy", None)
    attributes.pop("shared", None)
    if app is not None and not app.strict_typing:
        attributes.setdefault("typing", False)
    if not name:
        own_name = getattr(fun, "__name__", None)
        if own_name is None:
            raise TypeError(f"{fun!r} has no name, which its task needs. Give one: name='proj.tasks.…'.")
        module = getattr(fun, "__module__", None) or "__main__"
        namer: Any = app or registry.current.app
        name = str(namer.gen_task_name(own_name, module)) if namer is not None else _task_name(own_name, module, None)
    if base is None:
        base = app.Task if app is not None else TaskBase
    return define(fun, name=name, app=app, base=base, bind=bind, options=attributes)


def _task_name(name: str, module: str, main: str | None) -> str:
    if module == "__main__" or _is_main(module):
        module = main or "__main__"
    return f"{module}.{name}"


def _is_main(module: str) -> bool:
    """True for a second import of the file that runs as `__main__` (spawned processes do that)."""
    loaded, main = sys.modules.get(module), sys.modules.get("__mp_main__") or sys.modules.get("__main__")
    return loaded is not None and main is loaded


# -- settings while they may still change ----------------------------------------------------------------------------------------


class _Loaded:
    """Fills its owner with the app's settings when one of them is first looked at. From then on reading one costs nothing."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __get__(self, conf: Configuration | None, owner: Any = None) -> Any:
        if conf is None:
            return None
        conf._load()
        return vars(conf)[self.name]


class Configuration(Settings):
    """`app.conf`: the app's settings. They may be set until the app is in use (a broker or backend is opened), except those that are switched in tests."""

    def __init__(self, app: Celeriac) -> None:
        vars(self)["_app"] = app

    def _load(self) -> None:
        settings = self._app.settings
        vars(self).update(vars(settings))

    def _unload(self) -> None:
        app = self._app
        vars(self).clear()
        vars(self)["_app"] = app

    _app: Celeriac
    _given = cast("Any", _Loaded())
    remarks = cast("list[str]", _Loaded())

    def __setattr__(self, name: str, value: Any) -> None:
        self._app._set({name: value})

    def __delattr__(self, name: str) -> None:
        self._app._unset(name)

    __setitem__ = __setattr__

    def update(self, *others: Mapping[str, Any], **values: Any) -> None:
        for other in others:
            self._app._set(other)
        self._app._set(values)

    def setdefault(self, name: str, default: Any = None) -> Any:
        if self.get(name) is None:
            self[name] = default
        return self[name]

    def __getitem__(self, name: str) -> Any:
        self._load()
        return super().__getitem__(name)

    def items(self) -> Iterator[tuple[str, Any]]:
        self._load()
        return super().items()

    def values(self) -> Iterator[Any]:
        self._load()
        return super().values()

    def __reduce__(self) -> tuple[Any, ...]:
        return Settings.build, (dict(vars(self._app.settings)["_given"]),)


for _name in SETTINGS:
    setattr(Configuration, _name, _Loaded(_name))

_TEST_SWITCHES = frozenset({"task_always_eager", "task_eager_propagates", "task_store_eager_result"})
"""Settings that nothing keeps a copy of. Tests turn them on and off, also when the app is in use."""


# -- the app ---------------------------------------------------------------------------------------------------------------------


class Celeriac:
    """An application: its settings, its tasks, and the way to its engine. Safe to use from any thread."""

    Task: type[TaskBase[..., Any]] = TaskBase
    """What tasks are made of, unless they name a `base`."""

    def __init__(
        self,
        main: str | None = None,
        *,
        broker: str | Sequence[str] | None = None,
        backend: str | None = None,
        include: Iterable[str] | str | None = None,
        config_source: Any = None,
        namespace: str | None = None,
        task_cls: type[TaskBase[..., Any]] | str | None = None,
        set_as_current: bool = True,
        autofinalize: bool = True,
        strict_typing: bool = True,
        changes: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """`main` names tasks that are defined in the script that runs. Any setting may be given as a keyword.

        `strict_typing=False`: calls are not checked against the signature of the task, unless a task says `typing=True`.
        """
        self.main = main
        self.strict_typing = strict_typing
        self.settings_now: Settings | None = None
        self.finalized = False
        self.autofinalize = autofinalize
        self._conf = Configuration(self)
        self._source: tuple[Any, str | None] | None = None
        self._read: dict[str, Any] | None = None
        self._given: dict[str, Any] = {}
        self._defaults: dict[str, Any] = {}
        self._in_use_since: str | None = None
        self._configured = False
        self._tasks = TaskRegistry()
        self._broker: Broker | None = None
        self._backend: ResultBackend | None = None
        self.producer_now: Producer | None = None
        self._eager_producer: Producer | None = None
        self._router: Router | None = None
        self._control: Control | None = None
        self._entries: Entries | None = None
        self._discoveries: list[tuple[Any, str]] = []
        self._include = (include,) if isinstance(include, str) else tuple(include or ())
        self.outbox: Outbox | None = None
        """Takes messages that are to be sent only when something else is committed (`celeriac.django`)."""
        self.engines: dict[str, Callable[..., Broker]] = {}
        """What opens the engines of further URLs, by their scheme, as `open_engine` does (`celeriac.django` brings "django")."""
        self.result_backends: dict[str, Callable[[Settings], ResultBackend]] = {}
        """What opens the backends that `result_backend` may name beside engines (`celeriac.django` brings "django-db" and "django-cache")."""
        self.periodic_tasks: dict[str, dict[str, Any]] = {}
        """What `add_periodic_task` added to `beat_schedule`, by name."""
        self.on_configure = events.Signal("app.on_configure")
        self.on_after_configure = events.Signal("app.on_after_configure", ("source",))
        self.on_after_finalize = events.Signal("app.on_after_finalize")
        self.on_after_fork = events.Signal("app.on_after_fork")
        if task_cls is not None:
            self.Task = _imported(task_cls) if isinstance(task_cls, str) else task_cls
        if broker is not None:
            settings["broker_url"] = broker
        if backend is not None:
            settings["result_backend"] = backend
        self._set({**(changes or {}), **settings})
        if config_source is not None or namespace is not None:
            self._source = (config_source, namespace)
        if set_as_current:
            self.set_default()

    # -- settings ----------------------------------------------------------------------------------------------------------------

    @property
    def conf(self) -> Configuration:
        """The settings: `app.conf.task_acks_late = False`, until the app is in use."""
        return self._conf

    @property
    def settings(self) -> Settings:
        """The settings as they stand, checked and read-only."""
        return self.settings_now or self._build_settings()

    def config_from_object(self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None) -> None:
        """Takes settings from a module or object (or its name, `"proj.settings"`, `"django.conf:settings"`) or a dict; when they are first needed.

        With `namespace="CELERY"`, those whose names begin with `CELERY_`. What is set on `app.conf` or given to the app goes before them, and
        the environment (CELERY_BROKER_URL, CELERY_RESULT_BACKEND) before everything.
        """
        with _lock:
            self._refuse_if_in_use("config_from_object()")
            self._source = (obj, namespace)
            self._read = None
            self._forget_settings()
        if force:
            try:
                self._build_settings()
            except ImportError:
                if not silent:
                    raise
                self._source = None

    @property
    def has_source(self) -> bool:
        """Whether it reads its settings from somewhere (`config_from_object`)."""
        return self._source is not None

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> None:
        """`config_from_object` with the module that an environment variable names."""
        module = os.environ.get(variable_name)
        if module:
            self.config_from_object(module, silent=silent, force=force)
        elif not silent:
            raise ImproperlyConfigured(
                f"The environment variable {variable_name!r} is not set; it should name the module with the settings."
            )

    def add_defaults(self, fun: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        """Settings that count where nobody else names them."""
        self._refuse_if_in_use("add_defaults()")
        values = fun() if callable(fun) else fun
        with _lock:
            for name, value in values.items():
                self._defaults.setdefault(check_name(name), value)
            self._forget_settings()

    def _set(self, values: Mapping[str, Any]) -> None:
        if not values:
            return
        known = {check_name(name): value for name, value in values.items()}
        with _lock:
            for name in known:
                if name not in _TEST_SWITCHES:
                    self._refuse_if_in_use(f"app.conf.{name}")
            check_values(known)
            self._given.update(known)
            self._forget_settings()

    def _unset(self, name: str) -> None:
        with _lock:
            self._refuse_if_in_use(f"app.conf.{name}")
            self._given.pop(check_name(name), None)
            self._forget_settings()

    def _forget_settings(self) -> None:
        self.settings_now = None
        self._conf._unload()
        self._router = self.producer_now = self._eager_producer = None

    def _refuse_if_in_use(self, what: str) -> None:
        if self._in_use_since is not None:
            raise ImproperlyConfigured(
                f"{what} comes too late: the app is in use since {self._in_use_since}, with the settings of that moment. "
                "Do it right after the app is created, before the first task is sent or run; or call app.close() first."
            )

    def _build_settings(self) -> Settings:
        with _lock:
            if self.settings_now is None:
                if not self._configured and self.on_configure.receivers:
                    self.on_configure.send(sender=self)
                if self._read is None:
                    self._read = self._read_source()
                named = {**self._read, **self._given}
                unsaid = {name: value for name, value in self._defaults.items() if named.get(name) is None}
                self.settings_now = Settings.build({**named, **unsaid}, from_environ(os.environ))
            return self.settings_now

    def _read_source(self) -> dict[str, Any]:
        """What `config_from_object` named, read."""
        if self._source is None:
            return {}
        obj, namespace = self._source
        source = _imported(obj) if isinstance(obj, str) else obj
        named = {check_name(name): value for name, value in read_settings(source, namespace).items()}
        if type(source).__module__ == "django.conf" and named.get("timezone") is None:
            named["timezone"] = source.TIME_ZONE
        return named

    def _configure(self) -> None:
        """Once, when the app is first finalized or used: tells those who wait for the settings (`on_after_configure`)."""
        if not self._configured:
            settings = self.settings
            self._configured = True
            if self.on_after_configure.receivers:
                self.on_after_configure.send(sender=self, source=settings)

    def _use(self, what: str) -> Settings:
        """From now on the settings stay as they are."""
        if self._source is not None and type(self._source[0]) is str and self._source[0].startswith("django.conf"):
            _set_up_django()  # the project may add to the settings then: its own database as the broker
        self._configure()
        settings = self.settings
        if self._in_use_since is None:
            self._in_use_since = f"{what} was opened"
        return settings

    # -- tasks -------------------------------------------------------------------------------------------------------------------

    @overload
    def task(self, fun: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, fun: Callable[P, R], /) -> TaskBase[P, R]: ...
    @overload
    def task(self, *, bind: Literal[True], **options: Any) -> BoundTaskDecorator: ...
    @overload
    def task(self, *, bind: Literal[False] = False, **options: Any) -> TaskDecorator: ...
    def task(self, *args: Any, **options: Any) -> Any:
        """Makes a task of a function: `@app.task`, or `@app.task(bind=True, max_retries=5)`. It is registered when the app is finalized."""

        def decorate(fun: Callable[..., Any]) -> TaskBase[..., Any]:
            task = _task_from_function(self, fun, options)
            self._add(task)
            return task

        return _decorated(args, decorate, "app.task")

    def register_task(self, task: T | type[T], **options: Any) -> T:
        """Registers a class-based task: `app.register_task(MyTask())`. Returns the task."""
        made = task() if isinstance(task, type) else task
        if not made.name:
            cls = type(made)
            made.__dict__["name"] = self.gen_task_name(cls.__name__, cls.__module__)
        made.__dict__.update(_app=self, _defaults=None, **options)
        self._add(made)
        return made

    def _add(self, task: TaskBase[..., Any]) -> None:
        with _lock:
            known = self._tasks.get(task.name)
            if known is not None and not _same_definition(known, task):
                raise AlreadyRegistered(
                    f"Two tasks are named {task.name!r}: {_place(known)} and {_place(task)}. Give one of them another name=."
                )
            self._tasks[task.name] = task
            if self.finalized:
                self._annotate(task)

    def adopt(self, task: TaskBase[..., Any]) -> None:
        """Gives this app its copy of a shared task."""
        with _lock:
            known = self._tasks.get(task.name)
            if known is None or known._function is not task._function:
                self._add(task.bound_to(self))

    def _annotate(self, task: TaskBase[..., Any]) -> None:
        """`task_annotations`: attributes that the settings give to tasks."""
        annotations = self.settings.task_annotations
        if not annotations:
            return
        for annotation in annotations if isinstance(annotations, (list, tuple)) else [annotations]:
            source = _imported(annotation) if isinstance(annotation, str) else annotation
            if isinstance(source, Mapping):
                given = {**(source.get("*") or {}), **(source.get(task.name) or {})}
            else:
                given = (source.annotate(task) if hasattr(source, "annotate") else None) or {}
            for name, value in given.items():
                # A function becomes a method, as in a class: task_annotations = {"*": {"on_failure": tell_somebody}}.
                setattr(task, name.removeprefix("@"), MethodType(value, task) if isinstance(value, FunctionType) else value)

    def gen_task_name(self, name: str, module: str) -> str:
        """What a task is called that has no name of its own. May be overridden."""
        return _task_name(name, module, self.main)

    @property
    def tasks(self) -> TaskRegistry:
        """All tasks by name. Finalizes the app."""
        if not self.finalized and self.autofinalize:
            self.finalize(auto=True)
        return self._tasks

    def finalize(self, auto: bool = False) -> None:
        """Registers the shared tasks, applies annotations, and tells `on_after_finalize`. Once; further calls do nothing."""
        with _lock:
            if self.finalized:
                return
            self._configure()
            for task in list(self._tasks.values()):
                self._annotate(task)
            self.finalized = True
            for task in registry.shared_tasks(self):
                self.adopt(task)
        if self.on_after_finalize.receivers:
            self.on_after_finalize.send(sender=self)

    def autodiscover_tasks(
        self, packages: Iterable[str] | Callable[[], Iterable[str]] | None = None, related_name: str | None = "tasks", force: bool = False
    ) -> None:
        """Imports the module `tasks` of each package; in Django, without `packages`, of each installed app. Happens in `import_modules`, or now with `force`.

        A package without such a module is passed over; any other error in an import is raised.
        """
        self._discoveries.append((packages, related_name or ""))
        if force:
            _discover(self._discoveries.pop())

    def import_modules(self, also: Iterable[str] = ()) -> None:
        """Imports what may define tasks: `imports`, `include`, and what `autodiscover_tasks` asked for. Workers and commands call this; callers need not."""
        settings = self.settings
        for module in (*settings.imports, *settings.include, *self._include, *also):
            _import_named(module)
        for discovery in self._discoveries:
            _discover(discovery)
        if events.import_modules.receivers:
            events.import_modules.send(sender=self)

    def add_periodic_task(
        self,
        schedule: Any,
        sig: Signature[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> str:
        """Adds an entry to the schedule of beat. Returns its name.

        `options` are those of `apply_async`, and the policies of docs/schedules.md (`misfire`, `overlap`, `jitter`, …).
        """
        from .tasks.entries import POLICIES

        signature = sig.clone(args, kwargs)
        key = name or repr(signature)
        policies = {option: options.pop(option) for option in POLICIES - {"expires"} if option in options}
        self.periodic_tasks[key] = {
            "schedule": schedule,
            "task": signature.task,
            "args": signature.args,
            "kwargs": signature.kwargs,
            "options": {**signature.options, **options},
            **policies,
        }
        return key

    def periodic(
        self,
        schedule: Any,
        *,
        name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        **policies: Any,
    ) -> Callable[[Callable[..., Any]], Any]:
        """Runs a task again and again: `@app.periodic(crontab(minute=0), overlap="skip")`, above `@app.task` or above a plain function, which it makes a task of.

        The entry is called like the task, unless `name` says otherwise. Policies as in docs/schedules.md.
        """

        def decorate(fun: Callable[..., Any]) -> Any:
            task: Any = fun if isinstance(fun, TaskBase) else self.task(fun)
            entry = {"schedule": schedule, "task": task.name, "args": args, "kwargs": kwargs or {}, "options": options or {}, **policies}
            key, number = name or task.name, 1
            while self.periodic_tasks.get(key, entry) != entry:
                number += 1
                key = f"{name or task.name} ({number})"
            self.periodic_tasks[key] = entry
            return task

        return decorate

    # -- calling -----------------------------------------------------------------------------------------------------------------

    def send_task(
        self, name: str, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Result[Any]:
        """Sends a task by its name; it need not be known here. Options as for `apply_async`.

        Raises: EncodeError, EnqueueError, as `delay`.
        """
        if self.settings.task_always_eager:
            known = self.tasks.get(name)
            if known is not None:
                return known.apply_async(args, kwargs, **options)
            import warnings

            warnings.warn(f"task_always_eager has no effect on send_task({name!r}): no task of that name is known here.", stacklevel=2)
        parent = _current_run.get()
        while parent is not None and parent.called_directly:
            parent = parent.outer
        producer = self.producer
        message = producer.message(name, tuple(args or ()), kwargs or {}, options=options, parent=parent)
        producer.publish((message,), retry=options.get("retry"), retry_policy=options.get("retry_policy"))
        result: Result[Any] = Result(message.id, app=self, ignored=message.ignore_result)
        if parent is not None and options.get("add_to_parent", True) and (parent.running is None or parent.running.trail):
            parent.children.append(result)
        return result

    async def asend_task(
        self, name: str, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Result[Any]:
        """`send_task` for coroutines."""
        import asyncio

        return await asyncio.to_thread(self.send_task, name, args, kwargs, **options)

    def signature(self, *args: Any, **kwargs: Any) -> Signature[Any]:
        """A planned call of one of this app's tasks, by name."""
        kwargs["app"] = self
        return signature(*args, **kwargs)

    def AsyncResult(self, id: str, **options: Any) -> Result[Any]:
        """The result of a task, by its id."""
        return Result(id, app=self, **options)

    def GroupResult(self, id: str | None = None, results: Iterable[Result[Any]] = (), **options: Any) -> Group:
        """The result of a group, from the results of its members."""
        return Group(id, results, app=self, **options)

    # -- engines -----------------------------------------------------------------------------------------------------------------

    @property
    def broker(self) -> Broker:
        """Where messages wait. Opened at the first use."""
        return self._broker or self._open_broker()

    def _open_broker(self) -> Broker:
        with _lock:
            if self._broker is None:
                settings = self._use(f"the broker {safe_url(self.settings.broker_url)}")
                self._broker = self._opened(settings.broker_url, settings, settings.broker_transport_options)
            return self._broker

    @property
    def backend(self) -> ResultBackend:
        """Where results are kept: the broker's own engine, unless `result_backend` names another."""
        return self._backend or self._open_backend()

    def _open_backend(self) -> ResultBackend:
        with _lock:
            if self._backend is None:
                settings = self.settings
                url = settings.result_backend
                scheme = "" if url is None else url.partition("://")[0]
                if scheme == "disabled":
                    self._backend = DisabledBackend()
                elif scheme in self.result_backends:
                    self._backend = self.result_backends[scheme](self._use(f"the result backend {scheme}"))
                elif scheme in ("django-db", "django-cache"):
                    raise ImproperlyConfigured(f"result_backend is {scheme!r}: add 'celeriac.django' to INSTALLED_APPS.")
                elif url is None or url == settings.broker_url or (scheme == "rpc" and self.broker.capabilities.atomic_results):
                    broker = self.broker
                    if not broker.capabilities.atomic_results:
                        raise ImproperlyConfigured(
                            f"The broker {safe_url(settings.broker_url)} keeps no results. Set result_backend to a URL such as 'redis://localhost' or "
                            "'sqlite:///results.db', to 'rpc://' (sent to who called), or to 'disabled'."
                        )
                    self._backend = cast("Engine", broker)
                elif scheme == "rpc":
                    from .engines import open_replies

                    self._backend = open_replies(self.broker)
                else:
                    self._use(f"the result backend {safe_url(url)}")
                    engine = self._opened(url, settings, settings.result_backend_transport_options)
                    if not engine.capabilities.atomic_results:
                        raise ImproperlyConfigured(
                            f"{safe_url(url)} keeps no results. Set result_backend to a URL such as 'redis://localhost'."
                        )
                    self._backend = cast("Engine", engine)
            return self._backend

    def _opened(self, url: str, settings: Settings, options: Mapping[str, Any]) -> Broker:
        from .engines import open_engine

        opens: Callable[..., Broker] = self.engines.get(url.partition("://")[0]) or open_engine
        return opens(
            url,
            result_expires=settings.result_expires,
            revokes_expire_seconds=settings.revokes_expire,
            task_queues=settings.task_queues,
            replies=(settings.result_backend or "").startswith("rpc:"),
            **options,
        )

    @property
    def results_with_broker(self) -> bool:
        """True when one engine keeps both, so that a settlement carries its record."""
        return cast("object", self.backend) is self.broker

    @property
    def joins(self) -> Joins:
        """Where chords are counted: the broker's engine, else (RabbitMQ) that of the results.

        Raises: ImproperlyConfigured: neither can count.
        """
        if self.broker.capabilities.joins:
            return cast("Joins", self.broker)
        if not hasattr(self.backend, "arrive"):
            raise ImproperlyConfigured(
                f"Chords are counted where the results are kept, and {safe_url(str(self.backend.url))} cannot count. "
                "Set result_backend to a redis://, postgresql:// or sqlite:/// URL."
            )
        return cast("Joins", self.backend)

    def occur(self, event: str, value: Any = None) -> list[str]:
        """An event occurs, with a value: the tasks that wait for it (`celeriac.steps.wait_for_event`) go on, and those that will wait for it do not.

        Returns the ids of those that waited. Raises EngineUnavailable: it has not occurred.
        """
        if not self.broker.capabilities.steps:
            raise ImproperlyConfigured(
                f"Events need a broker that keeps them: sqlite:// or memory://. {self.broker.capabilities.engine} does not."
            )
        return cast("Steps", self.broker).occur(event, encode_value(value, f"the value of event {event!r}"))

    @property
    def schedule_store(self) -> Schedules:
        """Where schedules are kept: the broker's engine, else (RabbitMQ) that of the results.

        Raises: ImproperlyConfigured: neither can keep them.
        """
        for role in (self.broker, self.backend):
            if getattr(role, "schedules", None) is not None:
                return cast("SchedulingEngine", role).schedules
        raise ImproperlyConfigured(
            f"Schedules are kept in the engine of the messages or of the results, and neither {safe_url(self.broker.url)} nor "
            f"{safe_url(str(self.backend.url))} can. Set result_backend to a redis://, postgresql:// or sqlite:/// URL."
        )

    @property
    def schedules(self) -> Entries:
        """The entries of beat's schedule: put, pause, run, preview, history, …"""
        if self._entries is None:
            from .tasks.entries import Entries

            self._entries = Entries(self)
        return self._entries

    @property
    def producer(self) -> Producer:
        """Builds and publishes messages."""
        return self.producer_now or self._make_producer()

    def _make_producer(self) -> Producer:
        with _lock:
            if self.producer_now is None:
                broker = self.broker
                self.producer_now = Producer(broker, self.router, self.settings, find_task=self._known_task, outbox=self.outbox)
            return self.producer_now

    @property
    def producer_without_broker(self) -> Producer:
        """Builds messages for eager runs, and opens no broker."""
        with _lock:
            if self._eager_producer is None:
                self._eager_producer = Producer(cast("Broker", None), self.router, self.settings, find_task=self._known_task)
            return self._eager_producer

    def _known_task(self, name: str) -> TaskBase[..., Any] | None:
        return self.tasks.get(name)

    @property
    def router(self) -> Router:
        """Which task goes to which queue."""
        with _lock:
            if self._router is None:
                self._router = _router(self.settings)
            return self._router

    @property
    def control(self) -> Control:
        """Commands to workers: revoke, inspect, rate limits, …"""
        if self._control is None:
            from .tasks.control import Control

            self._control = Control(self)
        return self._control

    def close(self) -> None:
        """Gives back connections and files. The next use opens them again, with the settings of then."""
        with _lock:
            broker, backend = self._broker, self._backend
            self._broker = self._backend = self.producer_now = None
            self._in_use_since = None
        if backend is not None and cast("object", backend) is not broker:
            backend.close()
        if broker is not None:
            broker.close()

    @contextmanager
    def with_engine(self, engine: Engine) -> Iterator[None]:
        """For tests: inside, messages and results are kept by `engine`, whatever the settings say; afterwards all is as before."""
        before = self._broker, self._backend, self.producer_now
        self._broker = self._backend = engine
        self.producer_now = None
        try:
            yield
        finally:
            self._broker, self._backend, self.producer_now = before

    def __enter__(self) -> Celeriac:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- the current app -----------------------------------------------------------------------------------------------------------

    def set_current(self) -> None:
        """Makes this the app of shared tasks in this thread."""
        registry.set_current_app(self)

    def set_default(self) -> None:
        """Makes this the app of shared tasks in all threads that have none of their own."""
        registry.set_default_app(self)

    @property
    def current_task(self) -> TaskBase[..., Any] | None:
        """The task that runs here, in this thread or coroutine."""
        return find_current_task()

    @property
    def timezone(self) -> Any:
        """The zone in which schedules are read."""
        from zoneinfo import ZoneInfo

        return ZoneInfo(self.settings.timezone or "UTC")

    def now(self) -> Any:
        """The time, in the app's zone."""
        from datetime import datetime

        return datetime.now(self.timezone)

    def start(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command line for this app: `app.start(["worker", "-l", "info"])`, or what the program was called with. Returns 0; exits with any other code."""
        words = list(sys.argv[1:] if argv is None else argv)
        if argv is not None and words[:1] in (["celery"], ["celeriac"]):
            del words[0]
        # By its name: the command line is above the app, and a program that only calls tasks never loads it.
        main: Callable[..., Any] = import_module(".cli.main", __package__).main
        try:
            main(words, app=self)
        except SystemExit as end:
            if end.code not in (0, None):
                raise
        return 0

    def worker_main(self, argv: Sequence[str] | None = None) -> int:
        """Runs a worker of this app: `app.worker_main(["worker", "-l", "info"])`."""
        words = list(sys.argv[1:] if argv is None else argv)
        if "worker" not in words:
            raise ValueError(
                f"worker_main({words!r}): the command 'worker' must be among the arguments. For other commands, there is app.start()."
            )
        return self.start(words)

    def __reduce__(self) -> tuple[Any, ...]:
        self._build_settings()
        return _app_again, (self.main, {**(self._read or {}), **self._given})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.main or '__main__'} at {id(self):#x}>"


def _app_again(main: str | None, settings: Mapping[str, Any]) -> Celeriac:
    """An unpickled app: the one of the same name that exists here, else a new one with its settings."""
    app = registry.current.app
    if isinstance(app, Celeriac) and app.main == main:
        return app
    return Celeriac(main, set_as_current=False, changes=settings)


def _router(settings: Settings) -> Router:
    return Router(
        settings.task_routes,
        default_queue=settings.task_default_queue,
        default_exchange=settings.task_default_exchange,
        default_routing_key=settings.task_default_routing_key,
        default_priority=settings.task_default_priority,
        queues=settings.task_queues,
        create_missing=settings.task_create_missing_queues,
    )


def _imported(name: str) -> Any:
    """`package.module`, `package.module:attribute`, or `package.module.attribute`."""
    module, colon, attribute = name.partition(":")
    if colon:
        found: Any = import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    try:
        return import_module(name)
    except ModuleNotFoundError as problem:
        parent, _, last = name.rpartition(".")
        if not parent or problem.name != name:
            raise
        owner = import_module(parent)
        if not hasattr(owner, last):
            raise
        return getattr(owner, last)


def _same_definition(one: TaskBase[..., Any], other: TaskBase[..., Any]) -> bool:
    """A module that is loaded again defines its tasks again, and so does a function that is called again; that is no conflict."""
    first, second = _place(one), _place(other)
    if "<locals>" in first or "<locals>" in second:
        return (first.partition(":")[0], first.rpartition(".")[2]) == (second.partition(":")[0], second.rpartition(".")[2])
    return first == second


def _place(task: TaskBase[..., Any]) -> str:
    made_of: Any = task._function if task._function is not None else type(task)
    return f"{getattr(made_of, '__module__', '?')}:{getattr(made_of, '__qualname__', repr(made_of))}"


def _import_named(module: str) -> None:
    """Imports a module that a setting or an option names. Errors inside of it are raised as they are."""
    try:
        import_module(module)
    except ModuleNotFoundError as problem:
        missing = problem.name or ""
        if module != missing and not module.startswith(f"{missing}."):
            raise
        raise ImproperlyConfigured(
            f"There is no module named {missing!r}, which `imports`, `include` or -I names{'' if missing == module else f' ({module})'}. "
            "Is it written as in an import statement, and is its folder on the path?"
        ) from problem


def _discover(discovery: tuple[Any, str]) -> None:
    packages, related_name = discovery
    if packages is None:
        packages = _installed_apps()
    elif callable(packages):
        packages = packages()
    for package in [packages] if isinstance(packages, str) else packages:
        _import_related(package, related_name)


def _installed_apps() -> list[str]:
    """Django's installed apps; none without Django."""
    if "django" not in sys.modules and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return []
    from django.apps import apps
    from django.conf import settings

    if not settings.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return []
    _set_up_django()
    return [config.name for config in apps.get_app_configs()]


def _set_up_django() -> None:
    import django
    from django.apps import apps

    if not apps.ready and not apps.loading:
        django.setup()


def _import_related(package: str, related_name: str) -> None:
    """Imports `package.related_name`. Only its absence is silent: an error inside of it, also a missing import, is the user's to see."""
    if not related_name:
        import_module(package)
        return
    try:
        import_module(package)
    except ModuleNotFoundError as problem:
        parent, _, _ = package.rpartition(".")
        if not parent or problem.name != package:
            raise
        package = parent  # INSTALLED_APPS may name a class
    name = f"{package}.{related_name}"
    try:
        import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name != name:
            raise


def app_or_default(app: Celeriac | None = None) -> Any:
    """The given app, else the current one."""
    return find_current_app() if app is None else app


current_app: Any = Proxy(find_current_app)
"""The current app, found anew at each use."""
current_task: Any = Proxy(find_current_task)
"""The task that runs here, found anew at each use."""
