"""Task: the function, and the ways to call it. The first of the three steps of a `delay()` (task → producer → engine)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast

from msgspec import Raw

from ..contracts.results import ResultBackend
from ..core import errors, states
from ..core.errors import ImproperlyConfigured, MaxRetriesExceededError, Replaced, Retry
from ..core.message import Message, Record
from ..core.serialize import encode_exception, encode_value
from ..core.settings import SETTINGS, Settings
from .producer import OPTIONS, Defaults, Producer, short_repr
from .registry import TaskRegistry, current, find_current_app
from .request import Request, _current
from .result import AsyncResult as Result
from .result import EagerResult
from .signature import Signature, signature_of

P = ParamSpec("P")
R = TypeVar("R")


class App(Protocol):
    """What a task needs of its app."""

    main: str | None
    settings_now: Settings | None
    """The settings as they stand, or None when they must be made (again)."""
    producer_now: Producer | None
    """The producer, or None when it must be made (again)."""

    @property
    def tasks(self) -> TaskRegistry: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def producer(self) -> Producer: ...
    @property
    def producer_without_broker(self) -> Producer: ...
    @property
    def backend(self) -> ResultBackend: ...
    @property
    def results_with_broker(self) -> bool: ...
    @property
    def control(self) -> Any: ...
    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any: ...
    def adopt(self, task: Task[..., Any]) -> None: ...


class CallOptions(TypedDict, total=False):
    """The options of `apply_async`."""

    task_id: str
    countdown: float | timedelta | None
    eta: datetime | str | None
    expires: float | timedelta | datetime | str | None
    priority: int | None
    queue: str | None
    exchange: str | None
    routing_key: str | None
    link: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None
    link_error: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None
    time_limit: float | None
    soft_time_limit: float | None
    ignore_result: bool | None
    serializer: str | None
    headers: Mapping[str, Any] | None
    shadow: str | None
    retry: bool | None
    retry_policy: Mapping[str, Any] | None
    add_to_parent: bool
    argsrepr: str
    kwargsrepr: str
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    group_index: int | None
    replaced_task_nesting: int
    stamped_headers: Iterable[str] | None
    reply_to: str
    correlation_id: str
    chain: Any
    chord: Any
    producer: Any
    publisher: Any
    connection: Any
    router: Any
    compression: str | None
    delivery_mode: int | str | None
    mandatory: bool
    immediate: bool


class _FromSettings:
    """A task's attribute that the settings answer, for as long as the task does not say otherwise itself."""

    def __init__(self, setting: str) -> None:
        self.setting = setting

    def __get__(self, task: Task[..., Any] | None, owner: Any = None) -> Any:
        if task is None:
            return None
        app = task._app or current.app
        if app is None:
            return None
        settings = app.settings_now
        return getattr(app.settings if settings is None else settings, self.setting, None)


def _setting(name: str) -> Any:
    return _FromSettings(name)


_HOOKS = ("before_start", "on_success", "on_failure", "on_retry", "after_return", "shadow_name")


class Task(Generic[P, R]):
    """A function that can be run later and elsewhere. Make one with `@app.task` or `@shared_task`, or derive a class and `app.register_task(Cls())`.

    A task is created once in a process, whatever it is asked to run, and may be used from any thread.
    """

    abstract: ClassVar[bool] = True
    MaxRetriesExceededError: ClassVar[type[errors.MaxRetriesExceededError]] = errors.MaxRetriesExceededError
    """`except self.MaxRetriesExceededError`, as in Celery."""
    OperationalError: ClassVar[type[errors.OperationalError]] = errors.OperationalError
    """`except add.OperationalError`, around a call: the engine cannot be reached."""
    name: str = ""
    """`module.function`, unless it is given."""
    typing: bool = True
    """Whether the arguments are checked against the signature when the task is called."""
    max_retries: int | None = 3
    """How often it may be retried; None: for ever."""
    default_retry_delay: float = 180
    """Seconds until a retry for which nothing else is said."""
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    retry_kwargs: dict[str, Any] = {}
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600
    retry_jitter: bool = True
    throws: tuple[type[BaseException], ...] = ()
    """Exceptions that are expected: logged in one line, without traceback."""
    trail: bool = True
    """Whether the tasks it sends are kept as its children."""
    queue: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    expires: float | datetime | None = None
    resultrepr_maxsize: int = 1024

    serializer: str = _setting("task_serializer")
    rate_limit: str | None = _setting("task_default_rate_limit")
    priority: int | None = _setting("task_default_priority")
    track_started: bool = _setting("task_track_started")
    acks_late: bool = _setting("task_acks_late")
    acks_on_failure_or_timeout: bool = _setting("task_acks_on_failure_or_timeout")
    acks_on_failure: bool | None = _setting("task_acks_on_failure")
    acks_on_timeout: bool | None = _setting("task_acks_on_timeout")
    reject_on_worker_lost: bool | None = _setting("task_reject_on_worker_lost")
    ignore_result: bool = _setting("task_ignore_result")
    store_eager_result: bool = _setting("task_store_eager_result")
    store_errors_even_if_ignored: bool = _setting("task_store_errors_even_if_ignored")
    time_limit: float | None = _setting("task_time_limit")
    soft_time_limit: float | None = _setting("task_soft_time_limit")
    send_events: bool = _setting("worker_send_task_events")

    is_async: bool = False
    """True for `async def`."""
    override_max_retries: int | None = None

    _app: App | None = None
    _bound: bool = False
    _function: Callable[..., Any] | None = None
    """The decorated function; None for a class-based task."""
    _defaults: Defaults | None = None
    _checker: Any = None
    _has_own_call: bool = False
    _result_class: ClassVar[type[Result[Any]]] = Result
    """What a call returns."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "abstract" not in cls.__dict__:
            cls.abstract = False
        cls._has_own_call = cls.__call__ is not Task.__call__
        _tidy_attributes(cls.__dict__, lambda name: delattr(cls, name), lambda name, value: setattr(cls, name, value))
        run = cls.__dict__.get("run")
        if run is not None:
            cls.is_async = _is_coroutine_function(run)

    # -- calling it ----------------------------------------------------------------------------------------------------------

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Result[R]:
        """Sends the task to run with these arguments. Returns when the engine holds it; that takes at most `broker_publish_timeout`.

        Raises: TypeError: the task does not take these arguments.
                EncodeError: an argument cannot be encoded; it is named.
                EnqueueError: the engine could not be reached; nothing was sent.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Result[R]:
        """As `delay`, with options: countdown, eta, expires, priority, queue, link, link_error, task_id, headers, time_limit, and so on."""
        app, message, result = self._prepare(args, kwargs, cast("dict[str, Any]", options))
        if message is not None:
            producer = app.producer_now or app.producer
            if options:
                producer.publish((message,), retry=options.get("retry"), retry_policy=options.get("retry_policy"))
            else:
                producer.publish((message,))
        return result

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> Result[R]:
        """`delay` for coroutines: the event loop goes on while the engine takes the message."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Result[R]:
        """`apply_async` for coroutines."""
        import asyncio

        settings = self.app.settings
        if settings.task_always_eager:
            return await asyncio.to_thread(self.apply_async, args, kwargs, **options)
        app, message, result = self._prepare(args, kwargs, cast("dict[str, Any]", options))
        if message is not None:
            publish = app.producer.publish
            await asyncio.to_thread(publish, (message,), retry=options.get("retry"), retry_policy=options.get("retry_policy"))
        return result

    def _prepare(
        self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: dict[str, Any]
    ) -> tuple[App, Message | None, Result[R]]:
        """Checks the call and builds its message; None instead when the task has been run on the spot (`task_always_eager`)."""
        app = self._app or current.app or find_current_app()
        defaults = self._defaults
        if defaults is None or defaults.settings is not app.settings_now:
            defaults = self.defaults(app.settings)
        if args is None:
            args = ()
        elif type(args) is not tuple:
            args = _positional(self, args)
        kwargs = {} if kwargs is None else kwargs
        if defaults.check is not None:
            defaults.check(*args, **kwargs)
        if defaults.has_shadow_name:
            shadow = options.get("shadow") or self.shadow_name(args, kwargs, options)
            if shadow:
                options["shadow"] = shadow
        if defaults.always_eager:
            return app, None, self._apply_eagerly(args, kwargs, options)
        parent = _current.get()
        while parent is not None and parent.called_directly:
            parent = parent.outer
        producer = app.producer_now or app.producer
        message = producer.message(self.name, args, kwargs, task=self, options=options, parent=parent)
        result: Result[R] = self._result_class(message.id, app=app, ignored=message.ignore_result)
        if parent is not None and options.get("add_to_parent", True) and (parent.running is None or parent.running.trail):
            parent.children.append(result)
        return app, message, result

    def delay_on_commit(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Django: `delay`, once the current database transaction has been committed; at once when there is none."""
        self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        using: str | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        """Django: `apply_async`, once the current transaction of database `using` has been committed."""
        from django.db import transaction

        def send() -> None:
            self.apply_async(args, kwargs, **options)

        transaction.on_commit(send, using=using)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function here and now, as any function."""
        outer = _current.get()
        if outer is not None and outer.running is self and not outer.entered:
            # A worker's run of a task whose class has a __call__ of its own that comes here by super().
            outer.entered = True
            return self.run(*args, **kwargs)
        request = Request.direct(self, args, kwargs)
        request.outer = outer
        token = _current.set(request)
        try:
            return self.run(*args, **kwargs)
        finally:
            _current.reset(token)

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The body of the task. Class-based tasks define it."""
        raise NotImplementedError(f"Task {self.name or type(self).__name__} does not define run().")

    # -- running it here, with all that belongs to a run ----------------------------------------------------------------------

    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        link: Any = None,
        link_error: Any = None,
        task_id: str | None = None,
        retries: int = 0,
        throw: bool | None = None,
        **options: Any,
    ) -> EagerResult[R]:
        """Runs the task here, as a worker would: with its request, retries (without waiting for them), hooks, signals and links.

        `throw` (else `task_eager_propagates`): let an exception of the task through.
        """
        from .eager import apply

        return apply(self, args, kwargs, {**options, "link": link, "link_error": link_error, "task_id": task_id, "retries": retries}, throw)

    def _apply_eagerly(self, args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]) -> Result[R]:
        from .eager import apply_instead_of_sending

        return apply_instead_of_sending(self, args, kwargs, options)

    # -- inside a run ----------------------------------------------------------------------------------------------------------

    @property
    def request(self) -> Request:
        """This run of the task; when it runs as a plain function, a request without an id that has `called_directly` set."""
        request = _current.get()
        while request is not None:
            if request.running is self or request.task == self.name:
                return request
            request = request.outer
        return Request.direct(self)

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Ends this run, to try again: `raise self.retry(exc=exc, countdown=60)`. Raises Retry itself, so that the word `raise` is only for the reader.

        With `throw=False` the Retry is returned, and takes effect when the run ends without an exception. Without `eta` or `countdown`, the task waits
        `default_retry_delay` seconds.

        Raises: exc: it has been retried `max_retries` times and `exc` is given; also when the task was called as a plain function.
                MaxRetriesExceededError: the same, without `exc`.
        """
        request = self.request
        if request.called_directly:
            _raise_with_context(exc if exc is not None else Retry("Task can be retried", None))
        if options and not options.keys() <= OPTIONS:
            from .producer import _check_options

            _check_options(options)
        if max_retries is None:
            limit = self.max_retries if self.override_max_retries is None else self.override_max_retries
        else:
            limit = max_retries
        if limit is not None and request.retries + 1 > limit:
            if exc is not None:
                _raise_with_context(exc)
            args_tried = request.args if args is None else args
            kwargs_tried = request.kwargs if kwargs is None else kwargs
            raise MaxRetriesExceededError(
                f"Can't retry {self.name}[{request.id}] args:{short_repr(tuple(args_tried))} kwargs:{short_repr(dict(kwargs_tried))}",
                task_args=args_tried,
                task_kwargs=kwargs_tried,
            )
        when: float | datetime | None = eta
        if countdown is not None:
            when = countdown.total_seconds() if isinstance(countdown, timedelta) else countdown
        elif eta is None:
            when = self.default_retry_delay
        retry = Retry(exc=exc, when=when, args=args, kwargs=kwargs, options=options)
        if throw:
            if exc is not None:
                raise retry from exc
            raise retry
        request.retry_asked = retry
        return retry

    def replace(self, sig: Mapping[str, Any]) -> Any:
        """Ends this run, and lets `sig` do the rest: `return self.replace(other.s(…))`. What waits for this task waits for it: it gets this task's id, its links, what comes after it
        in a chain, and its place in a chord. Both happen in one step. A group gives a list."""
        sig = signature_of(sig, app=self.app)
        if "chord" in sig.options:
            raise ImproperlyConfigured("A signature that replaces a task must not be part of a chord of its own.")
        if sig.subtask_type == "chain" and not sig["kwargs"]["tasks"]:
            raise ImproperlyConfigured("An empty chain cannot replace a task: it has no task that could run.")
        return self.on_replace(sig.clone())

    def on_replace(self, sig: Signature[Any]) -> Any:
        """Called by `replace`. Whoever overrides it returns `super().on_replace(sig)`."""
        request = self.request
        if request.called_directly or request.is_eager:
            return sig.apply().get(disable_sync_subtasks=False)
        raise Replaced(sig)

    def add_to_chord(self, sig: Signature[Any], lazy: bool = False) -> Result[Any]:
        """Adds a member to the chord that this task is in: it is sent when this task succeeds, in the same step, and its result comes after those of the other members.

        Raises ValueError: this task is in no chord.
        """
        request = self.request
        if request.message.join is None:
            raise ValueError(f"Task {self.name}[{request.id}] is not in the header of a chord, so nothing can be added to it.")
        if lazy:
            raise ValueError("add_to_chord(lazy=True) does not exist here: the member is sent in the step in which this task ends.")
        from .callbacks import derived_ids

        normal = sig._single(derived_ids(request.id or "", f"added.{len(request.additions)}"))
        request.additions.append(normal)
        return normal._result()

    def update_state(self, task_id: str | None = None, state: str | None = None, meta: Any = None, **ignored: Any) -> None:
        """Stores a state of this run, with JSON-able `meta`: `self.update_state(state="PROGRESS", meta={"done": 3, "of": 10})`.

        A run that has lost its message to another worker stores nothing.
        """
        request = self.request
        own_id = request.id
        task_id = task_id or own_id
        if task_id is None:
            raise ValueError(f"Task {self.name}: update_state() outside of a run needs task_id=.")
        app = self.app
        own = task_id == own_id
        delivery = request.delivery
        # Without acks_late the message was settled before the run, and its lease proves nothing any more.
        holds = own and delivery is not None and self.acks_late
        lease = delivery.lease if holds and delivery is not None and app.results_with_broker else None
        if holds and lease is None and not request.is_held():
            return
        if isinstance(meta, BaseException):
            result = encode_exception(meta)
        else:
            result = Raw(b"null") if meta is None else encode_value(meta, "meta")
        message = request.message
        record = Record(
            task_id=task_id,
            status=state or states.PENDING,
            result=result,
            date_done=datetime.now(UTC) if state in states.READY_STATES else None,
            name=self.name if own else None,
            args=message.argsrepr if own else None,
            kwargs=message.kwargsrepr if own else None,
            worker=request.hostname if own else None,
            queue=message.queue if own else None,
            retries=request.retries if own else 0,
            root_id=message.root_id if own else None,
            parent_id=message.parent_id if own else None,
            group_id=message.group if own else None,
            attempts=message.attempts if own else [],
        )
        app.backend.store([record], lease=lease)

    def add_trail(self, result: Any) -> Any:
        """Adds a result to the children of this run."""
        if self.trail:
            self.request.children.append(result)
        return result

    def push_request(self, *args: Any, **attributes: Any) -> None:
        """For tests: from now on `self.request` has these attributes, until `pop_request`."""
        request = Request.direct(self)
        request.called_directly = False
        request.outer = _current.get()
        for other in args:
            request.update(other)
        request.update(attributes)
        _current.set(request)

    def pop_request(self) -> None:
        request = _current.get()
        _current.set(None if request is None else request.outer)

    # -- hooks -----------------------------------------------------------------------------------------------------------------

    def before_start(self, task_id: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before each run. What it raises counts as raised by the task."""

    def on_success(self, retval: Any, task_id: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called when the run returned a value."""

    def on_failure(self, exc: Any, task_id: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: Any) -> None:
        """Called when the task has failed for good."""

    def on_retry(self, exc: Any, task_id: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: Any) -> None:
        """Called when it is to be tried again."""

    def after_return(
        self, status: str, retval: Any, task_id: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], einfo: Any
    ) -> None:
        """Called after each run, with its state and its value or exception."""

    def shadow_name(self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
        """Another name to show for this call in logs and dashboards."""
        return None

    # -- signatures --------------------------------------------------------------------------------------------------------------

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """A planned call with these arguments."""
        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """A planned call that takes nothing from the task before it."""
        return Signature(self, args, kwargs, immutable=True)

    def signature(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, *rest: Any, **options: Any
    ) -> Signature[R]:
        """A planned call, with options: `add.signature((2, 2), countdown=10)`."""
        return Signature(self, args, kwargs, *rest, **options)

    subtask = signature

    def map(self, it: Iterable[Any]) -> Signature[Any]:
        """One message that calls this task for each item: `add_one.map([1, 2])`."""
        kind: Any = Signature.TYPES["xmap"]
        made: Signature[Any] = kind(self, it, app=self._app)
        return made

    def starmap(self, it: Iterable[Any]) -> Signature[Any]:
        """One message that calls this task with each list of arguments: `add.starmap([(1, 2), (3, 4)])`."""
        kind: Any = Signature.TYPES["xstarmap"]
        made: Signature[Any] = kind(self, it, app=self._app)
        return made

    def chunks(self, it: Iterable[Any], n: int) -> Signature[Any]:
        """A group of starmaps of `n` calls each."""
        kind: Any = Signature.TYPES["chunks"]
        made: Signature[Any] = kind(self, it, n, app=self._app)
        return made

    # -- results, app, and what the settings say -----------------------------------------------------------------------------

    def AsyncResult(self, task_id: str, **options: Any) -> Result[R]:
        """The result of an earlier call of this task."""
        return self._result_class(task_id, app=self.app, **options)

    @property
    def app(self) -> App:
        """The app it belongs to; for a shared task, the current one."""
        return self._app or current.app or find_current_app()

    @property
    def backend(self) -> ResultBackend:
        return self.app.backend

    def defaults(self, settings: Settings) -> Defaults:
        """What this task adds to each of its calls under these settings; remembered."""
        known = self._defaults
        if known is not None and known.settings is settings:
            return known
        _check_attributes(self)
        hard, soft = self.time_limit, self.soft_time_limit
        hard = hard.total_seconds() if isinstance(hard, timedelta) else hard
        soft = soft.total_seconds() if isinstance(soft, timedelta) else soft
        if hard and soft and soft > hard:
            raise ImproperlyConfigured(f"Task {self.name}: soft_time_limit ({soft:g} s) must not be longer than time_limit ({hard:g} s).")
        routing: dict[str, Any] = {}
        for name in ("queue", "exchange", "routing_key"):
            value = getattr(self, name)
            if value is not None:
                routing[name] = value
        own_priority = self.__dict__.get("priority", _class_value(type(self), "priority"))
        if own_priority is not None:
            routing["priority"] = own_priority
        made = Defaults(
            settings=settings,
            routing=routing,
            serializer=self.serializer or settings.task_serializer,
            expires=self.expires,
            time_limit=hard,
            soft_time_limit=soft,
            ignore_result=bool(self.ignore_result),
            always_eager=settings.task_always_eager,
            check=self._argument_check() if self.typing else None,
            has_shadow_name=getattr(self.shadow_name, "__func__", None) is not Task.shadow_name,
        )
        self.__dict__["_defaults"] = made
        return made

    def _argument_check(self) -> Callable[..., Any] | None:
        if self._checker is None:
            if self._function is not None:
                function: Any = self._function
                skip = 1 if self._bound else 0
            else:
                function, skip = type(self).run, 1
                if isinstance(type(self).__dict__.get("run"), staticmethod):
                    skip = 0
            self.__dict__["_checker"] = _argument_check(function, skip) or False
        return self._checker or None

    def __setattr__(self, name: str, value: Any) -> None:
        # An attribute that is changed after the first call still counts for the next one.
        attributes = self.__dict__
        attributes["_defaults"] = None
        if name == "run":
            attributes["run"] = value
        else:
            object.__setattr__(self, name, value)
            _tidy_attributes({name: value}, attributes.pop, attributes.__setitem__)

    def __delattr__(self, name: str) -> None:
        self.__dict__["_defaults"] = None
        object.__delattr__(self, name)

    # -- identity ----------------------------------------------------------------------------------------------------------------

    def bound_to(self, app: App) -> Task[P, R]:
        """A copy of this task that belongs to `app`: what a shared task becomes in each app."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.__dict__.update(_app=app, _defaults=None)
        for name, value in self.__dict__.items():
            if isinstance(value, MethodType) and value.__self__ is self:
                twin.__dict__[name] = MethodType(value.__func__, twin)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.name, type(self).__module__ if self._function is None else self._function.__module__)

    def __copy__(self) -> Task[P, R]:
        return self

    def __deepcopy__(self, memo: Any) -> Task[P, R]:
        return self

    def __repr__(self) -> str:
        app = self._app or current.app
        return f"<@task: {self.name} of {(app.main if app is not None else None) or '__main__'} at {id(self):#x}>"


# -- making a task of a function -------------------------------------------------------------------------------------------------


def define(
    function: Callable[..., Any],
    *,
    name: str,
    app: App | None,
    base: type[Task[..., Any]] = Task,
    bind: bool = False,
    options: Mapping[str, Any],
) -> Task[..., Any]:
    """The task of a function. `options` become its attributes; hooks among them get the task as their first argument."""
    task = base()
    attributes = task.__dict__
    attributes["_app"] = app
    attributes["_function"] = function
    attributes["_bound"] = bind
    attributes["name"] = name
    attributes["run"] = MethodType(function, task) if bind else function
    attributes["is_async"] = _is_coroutine_function(function)
    attributes["__wrapped__"] = function
    for special in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__", "__type_params__"):
        with suppress(AttributeError):
            attributes[special] = getattr(function, special)
    for key, value in options.items():
        attributes[key] = MethodType(value, task) if key in _HOOKS and isinstance(value, FunctionType) else value
    _tidy_attributes(dict(attributes), attributes.pop, attributes.__setitem__)
    return task


def _tidy_attributes(attributes: Mapping[str, Any], remove: Callable[[str], Any], put: Callable[[str, Any], Any]) -> None:
    """None where the settings may answer means: let them. One exception, or a list of them, where a tuple belongs, is as good."""
    for name, value in list(attributes.items()):
        if value is None and isinstance(_raw_class_value(Task, name), _FromSettings):
            remove(name)
        elif name in ("autoretry_for", "dont_autoretry_for", "throws") and not isinstance(value, tuple):
            put(name, (value,) if isinstance(value, type) else tuple(value or ()))


_LIKE_SETTINGS = {
    "time_limit": "task_time_limit",
    "soft_time_limit": "task_soft_time_limit",
    "rate_limit": "task_default_rate_limit",
    "priority": "task_default_priority",
    "serializer": "task_serializer",
}
"""Attributes that take what a setting takes."""


def _check_attributes(task: Task[..., Any]) -> None:
    """Raises ImproperlyConfigured for a value that would only fail in a worker, or in the middle of a retry."""
    for name, setting in _LIKE_SETTINGS.items():
        try:
            SETTINGS[setting].check(getattr(task, name))
        except ValueError as problem:
            raise ImproperlyConfigured(f"Task {task.name}: {name} must be {problem}, not {getattr(task, name)!r}.") from None
    limit, delay, backoff = task.max_retries, task.default_retry_delay, task.retry_backoff
    if limit is not None and not isinstance(limit, (int, float)):
        raise ImproperlyConfigured(f"Task {task.name}: max_retries must be a whole number, or None for ever, not {limit!r}.")
    if not isinstance(delay, (int, float, timedelta)):
        raise ImproperlyConfigured(f"Task {task.name}: default_retry_delay must be seconds, not {delay!r}.")
    if not isinstance(backoff, (int, float)):
        raise ImproperlyConfigured(f"Task {task.name}: retry_backoff must be True, or the seconds of the first pause, not {backoff!r}.")
    for name in ("autoretry_for", "dont_autoretry_for", "throws"):
        for kind in getattr(task, name):
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise ImproperlyConfigured(f"Task {task.name}: {name} must be exception classes, not {kind!r}.")


def _raw_class_value(cls: type, name: str) -> Any:
    for owner in cls.__mro__:
        if name in owner.__dict__:
            return owner.__dict__[name]
    return None


def _class_value(cls: type, name: str) -> Any:
    value = _raw_class_value(cls, name)
    return None if isinstance(value, _FromSettings) else value


def _is_coroutine_function(function: Any) -> bool:
    """inspect.iscoroutinefunction, without the 10 ms that importing inspect costs."""
    function = getattr(function, "__func__", function)
    while type(function).__name__ == "partial" and hasattr(function, "func"):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None:
        code = getattr(getattr(type(function), "__call__", None), "__code__", None)  # noqa: B004
    return isinstance(code, CodeType) and bool(code.co_flags & 0x80)


def _argument_check(function: Any, skip: int) -> Callable[..., Any] | None:
    """An empty function with the signature of `function` (less its first `skip` arguments): calling it costs a tenth of `inspect.Signature.bind`
    and raises the TypeError that the function itself would raise. None when the signature cannot be seen."""
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    if isinstance(function, MethodType):
        function, skip = function.__func__, skip + 1
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    positional = list(code.co_varnames[: code.co_argcount])
    keyword_only = list(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])
    at = code.co_argcount + code.co_kwonlyargcount
    parts = positional[skip:]
    defaults = function.__defaults__ or ()
    if code.co_posonlyargcount > skip:
        parts.insert(code.co_posonlyargcount - skip, "/")
    if len(positional) < skip and not code.co_flags & 0x04:
        return None
    if code.co_flags & 0x04:
        parts.append("*" + code.co_varnames[at])
        at += 1
    elif keyword_only:
        parts.append("*")
    parts += keyword_only
    if code.co_flags & 0x08:
        parts.append("**" + code.co_varnames[at])
    required = len(positional) - len(defaults)
    optional = {positional[index] for index in range(max(required, skip), len(positional))} | set(function.__kwdefaults__ or ())
    text = ", ".join(f"{part}=None" if part in optional else part for part in parts)
    name = function.__name__ if function.__name__.isidentifier() else "task"
    scope: dict[str, Any] = {}
    try:
        exec(f"def {name}({text}): pass", scope)
    except SyntaxError:  # a keyword as a name, made by a program
        return None
    check: Callable[..., Any] = scope[name]
    return check


def _positional(task: Task[..., Any], args: Any) -> tuple[Any, ...]:
    if isinstance(args, (str, bytes)) or not hasattr(args, "__iter__"):
        raise TypeError(
            f"{task.name}: args={args!r} must be a list or tuple of the positional arguments. For one of them, write args=({args!r},)."
        )
    return tuple(args)


def _raise_with_context(error: BaseException) -> Any:
    """Raises `error`, with what is being handled as its cause, unless it is that itself."""
    handled = sys.exc_info()[1]
    if handled is None or handled is error:
        raise error
    raise error from handled


def _unpickled(name: str, module: str | None) -> Task[..., Any]:
    app = find_current_app()
    if name not in app.tasks and module:
        from importlib import import_module

        import_module(module)
    return app.tasks[name]


class AsyncTask(Task[P, R]):
    """How type checkers see the task of an `async def`: called directly it gives a coroutine, sent it gives an AsyncResult of what that returns.

    Only a type: at run time such a task is a plain Task with `is_async` set.
    """

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
