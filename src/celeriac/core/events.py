"""Signals: who wants to know when something happens in an app, and telling them. The names and arguments are Celery's.

`if signal.receivers:` is the cheap question whether anybody listens; whoever sends asks it first and builds the arguments only then.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, overload

_Receiver = TypeVar("_Receiver", bound=Callable[..., Any])

logger = logging.getLogger("celeriac.signals")


class _Connection:
    """One receiver, as connected."""

    __slots__ = ("key", "reference", "sender_key", "weak")

    def __init__(self, key: Any, reference: Any, weak: bool, sender_key: Any) -> None:
        self.key = key
        self.reference = reference
        self.weak = weak
        self.sender_key = sender_key

    def receiver(self) -> Callable[..., Any] | None:
        """None when it has been collected."""
        if not self.weak:
            found: Callable[..., Any] = self.reference
            return found
        return self.reference()  # type: ignore[no-any-return]


class Signal:
    """Something that happens, and those who want to be told.

    A receiver is called as `receiver(signal=…, sender=…, **arguments)`, in the thread that sends. What it raises is logged; it never reaches the sender.
    """

    __slots__ = ("__weakref__", "_lock", "name", "providing", "receivers")

    def __init__(self, name: str, providing: tuple[str, ...] = ()) -> None:
        self.name = name
        self.providing = providing
        """The names of the arguments."""
        self.receivers: tuple[_Connection, ...] = ()
        """Empty when nobody listens. Replaced, never changed, so that a send in another thread sees one or the other."""
        self._lock = threading.RLock()

    @overload
    def connect(self, fn: _Receiver, sender: Any = None, weak: bool = True, dispatch_uid: Any = None, retry: bool = False) -> _Receiver: ...
    @overload
    def connect(
        self, fn: None = None, sender: Any = None, weak: bool = True, dispatch_uid: Any = None, retry: bool = False
    ) -> Callable[[_Receiver], _Receiver]: ...
    def connect(self, fn: Any = None, sender: Any = None, weak: bool = True, dispatch_uid: Any = None, retry: bool = False) -> Any:
        """Calls `fn` at each send; of any sender, or only of `sender`. Usable as a decorator, with or without arguments.

        A weak receiver is forgotten when nobody else holds it. A second connect of the same receiver (or `dispatch_uid`) for the same sender
        changes nothing. `retry=True` calls a receiver that raised again, up to three times.
        """
        if fn is None:
            return lambda receiver: self.connect(receiver, sender=sender, weak=weak, dispatch_uid=dispatch_uid, retry=retry)
        if not callable(fn):
            raise TypeError(f"Signal {self.name}: a receiver must be callable, and {fn!r} is not.")
        receiver = _retrying(fn) if retry else fn
        sender_key = self._sender_key(sender)
        key = self._key(fn, sender_key, dispatch_uid)
        reference = _weak(receiver, self._forget_collected) if weak and not retry else receiver
        with self._lock:
            if all(known.key != key for known in self.receivers):
                self.receivers += (_Connection(key, reference, weak and not retry, sender_key),)
        return fn

    def disconnect(
        self, receiver: Callable[..., Any] | None = None, sender: Any = None, weak: bool | None = None, dispatch_uid: Any = None
    ) -> bool:
        """Undoes `connect` with the same receiver (or `dispatch_uid`) and sender. Says whether it was connected."""
        key = self._key(receiver, self._sender_key(sender), dispatch_uid)
        with self._lock:
            kept = tuple(known for known in self.receivers if known.key != key)
            found = len(kept) != len(self.receivers)
            self.receivers = kept
        return found

    def has_listeners(self, sender: Any = None) -> bool:
        """Whether a send of `sender` would call anybody."""
        return bool(self._live_receivers(sender))

    def send(self, sender: Any = None, **arguments: Any) -> list[tuple[Callable[..., Any], Any]]:
        """Calls every receiver. Returns each with what it returned, or with the exception it raised."""
        answers: list[tuple[Callable[..., Any], Any]] = []
        if not self.receivers:
            return answers
        for receiver in self._live_receivers(sender):
            try:
                answer = receiver(signal=self, sender=sender, **arguments)
            except Exception as exc:
                logger.exception("Signal handler %r of %s raised: %r", receiver, self.name, exc)
                answers.append((receiver, exc))
            else:
                answers.append((receiver, answer))
        return answers

    send_robust = send

    def _live_receivers(self, sender: Any) -> list[Callable[..., Any]]:
        sent_by = self._sender_key(sender)
        live = []
        for connection in self.receivers:
            if connection.sender_key is None or connection.sender_key == sent_by:
                receiver = connection.receiver()
                if receiver is not None:
                    live.append(receiver)
        return live

    def _sender_key(self, sender: Any) -> Any:
        """Senders are told apart by identity; but a task by its name, since `@app.task` and the worker may hold different objects for it."""
        if sender is None or isinstance(sender, str):
            return sender
        name = getattr(sender, "name", None)
        if isinstance(name, str) and callable(getattr(sender, "apply_async", None)):
            return name
        return id(sender)

    def _key(self, receiver: Any, sender_key: Any, dispatch_uid: Any) -> Any:
        if dispatch_uid is not None:
            return ("uid", dispatch_uid, sender_key)
        owner = getattr(receiver, "__self__", None)
        function = getattr(receiver, "__func__", None)
        if owner is not None and function is not None:
            return (id(owner), id(function), sender_key)
        return (id(receiver), sender_key)

    def _forget_collected(self, reference: Any) -> None:
        with self._lock:
            self.receivers = tuple(known for known in self.receivers if known.reference is not reference)

    def __repr__(self) -> str:
        return f"<Signal: {self.name} providing {', '.join(self.providing) or 'nothing'}>"


def _weak(receiver: Callable[..., Any], when_collected: Callable[[Any], None]) -> Any:
    if hasattr(receiver, "__self__") and hasattr(receiver, "__func__"):
        return weakref.WeakMethod(receiver, when_collected)
    return weakref.ref(receiver, when_collected)


def _retrying(receiver: Callable[..., Any]) -> Callable[..., Any]:
    def call(**arguments: Any) -> Any:
        for _ in range(3):
            try:
                return receiver(**arguments)
            except Exception as exc:
                logger.warning("Signal handler %r raised %r, and is called again.", receiver, exc)
        return receiver(**arguments)

    return call


# -- sending, in the process that calls; sender: the task's name

before_task_publish = Signal("before_task_publish", ("body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"))
after_task_publish = Signal("after_task_publish", ("headers", "body", "exchange", "routing_key"))
task_sent = Signal("task_sent", ("task_id", "task", "args", "kwargs", "eta", "taskset"))

# -- one run, in the process that runs it; sender: the task

task_prerun = Signal("task_prerun", ("task_id", "task", "args", "kwargs"))
task_postrun = Signal("task_postrun", ("task_id", "task", "args", "kwargs", "retval", "state"))
task_success = Signal("task_success", ("result", "runtime"))
task_retry = Signal("task_retry", ("request", "reason", "einfo"))
task_failure = Signal("task_failure", ("task_id", "exception", "args", "kwargs", "traceback", "einfo"))
task_internal_error = Signal("task_internal_error", ("task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"))

# -- deliveries that do not run; sender: the task, or the worker

task_received = Signal("task_received", ("request",))
task_revoked = Signal("task_revoked", ("request", "terminated", "signum", "expired"))
task_rejected = Signal("task_rejected", ("message", "exc"))
task_unknown = Signal("task_unknown", ("message", "exc", "name", "id"))

# -- the worker's life

import_modules = Signal("import_modules")
celeryd_init = Signal("celeryd_init", ("instance", "conf", "options"))
celeryd_after_setup = Signal("celeryd_after_setup", ("instance", "conf"))
celeriacd_init = celeryd_init
celeriacd_after_setup = celeryd_after_setup
"""These two under the names that a project has when "celery" is replaced everywhere."""
worker_init = Signal("worker_init")
worker_before_create_process = Signal("worker_before_create_process")
worker_process_init = Signal("worker_process_init", ("hostname",))
worker_process_shutdown = Signal("worker_process_shutdown", ("pid", "exitcode"))
worker_ready = Signal("worker_ready")
worker_shutting_down = Signal("worker_shutting_down", ("sig", "how", "exitcode"))
worker_shutdown = Signal("worker_shutdown")
heartbeat_sent = Signal("heartbeat_sent")

# -- logs

setup_logging = Signal("setup_logging", ("loglevel", "logfile", "format", "colorize"))
after_setup_logger = Signal("after_setup_logger", ("logger", "loglevel", "logfile", "format", "colorize"))
after_setup_task_logger = Signal("after_setup_task_logger", ("logger", "loglevel", "logfile", "format", "colorize"))

# -- beat, pools, command line

beat_init = Signal("beat_init")
beat_embedded_init = Signal("beat_embedded_init")
eventlet_pool_started = Signal("eventlet_pool_started")
eventlet_pool_preshutdown = Signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown = Signal("eventlet_pool_postshutdown")
eventlet_pool_apply = Signal("eventlet_pool_apply", ("target", "args", "kwargs"))
user_preload_options = Signal("user_preload_options", ("app", "options"))
