"""How far a task is, in the words of a page, and each change of it as it comes."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import close_old_connections
from django.utils.translation import gettext as _

from ..core import states
from ..core.serialize import decode_exception, decode_value
from ..tasks.result import readable
from .project import ensure_app

if TYPE_CHECKING:
    from ..contracts.results import Subscription
    from ..core.message import Record

Status = dict[str, Any]
"""`state`, `ready`, `percent`, `done`, `total`, `text`, `result`, `error`: what the docs say of them."""

KEEP_ALIVE_SECONDS = 10.0
"""So often at least something is written: it shows whether anybody listens."""
PAUSE_SECONDS = 0.05
"""Between two changes that are told; a task may tell how far it is a thousand times a second."""

R = TypeVar("R")


def status_of(task_id: str) -> Status:
    """Raises EngineUnavailable."""
    return describe(ensure_app().backend.fetch([task_id]).get(task_id))


def follow(task_id: str, seconds: float) -> Iterator[Status | None]:
    """The status now, and each time that it changes, until the task has ended or the time is over; None when nothing was new for a while. Raises EngineUnavailable."""
    watch = _Watch(task_id, seconds)
    try:
        watch.open()
        yield watch.look()
        while not watch.over:
            time.sleep(watch.pause_seconds)
            yield watch.look(watch.patience_seconds)
    finally:
        watch.close()


async def afollow(task_id: str, seconds: float) -> AsyncGenerator[Status | None]:
    """`follow` for coroutines: whatever may take a moment is done in a thread."""
    watch = _Watch(task_id, seconds)
    try:
        await _in_thread(watch.open)
        yield await _in_thread(watch.look)
        while not watch.over:
            await asyncio.sleep(watch.pause_seconds)
            await readable(watch.subscription.fileno(), watch.patience_seconds)
            yield await _in_thread(lambda: watch.look(0.0))
    finally:
        await asyncio.shield(_in_thread(watch.close))


class Encoder(DjangoJSONEncoder):
    """What JSON has no word for is shown as text."""

    def default(self, o: Any) -> Any:
        try:
            return super().default(o)
        except TypeError:
            return str(o)


class _Watch:
    """What one viewer has seen. Its steps exclude each other: who goes away in the middle of one closes it in another thread."""

    subscription: Subscription

    def __init__(self, task_id: str, seconds: float) -> None:
        self._id = task_id
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._closed = False
        self._seen: Status | None = None
        self._told_at = 0.0

    def open(self) -> None:
        with self._lock:
            if not self._closed:
                self.subscription = ensure_app().backend.subscribe([self._id])

    def look(self, wait_seconds: float | None = None) -> Status | None:
        """The status, if it is another one. First waits until it may be, if told how long."""
        with self._lock:
            if self._closed:
                return None
            if wait_seconds is not None:
                self.subscription.changed(wait_seconds)
            status = status_of(self._id)
        self._told_at = time.monotonic()
        if status == self._seen:
            return None
        self._seen = status
        return status

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if hasattr(self, "subscription"):
                self.subscription.close()

    @property
    def over(self) -> bool:
        return self._seen is None or self._seen["ready"] or time.monotonic() >= self._until

    @property
    def pause_seconds(self) -> float:
        return max(0.0, self._told_at + PAUSE_SECONDS - time.monotonic())

    @property
    def patience_seconds(self) -> float:
        return max(0.0, min(KEEP_ALIVE_SECONDS, self._until - time.monotonic()))


async def _in_thread(step: Callable[[], R]) -> R:
    """Django's connections are treated there as around a request."""

    def run() -> R:
        close_old_connections()
        try:
            return step()
        finally:
            close_old_connections()

    return await asyncio.to_thread(run)


# -- words -------------------------------------------------------------------------------------------------------------------


def describe(record: Record | None) -> Status:
    state = states.PENDING if record is None else record.status
    status: Status = {
        "state": state,
        "ready": state in states.READY_STATES,
        "percent": None,
        "done": None,
        "total": None,
        "text": _label(state),
        "result": None,
        "error": None,
    }
    if record is None or state in (states.PENDING, states.STARTED, states.RETRY):
        return status
    if state == states.SUCCESS:
        return status | {"percent": 100, "result": decode_value(record.result)}
    if state in states.READY_STATES:
        return status | {"error": _error(record)}
    return status | _measured(decode_value(record.result))


def _label(state: str) -> str:
    labels: dict[str, str] = {
        states.PENDING: _("Waiting"),
        states.RETRY: _("Trying again"),
        states.SUCCESS: _("Done"),
        states.FAILURE: _("Failed"),
        states.REVOKED: _("Cancelled"),
    }
    return labels.get(state) or str(_("Running"))


def _error(record: Record) -> str:
    """The kind of the exception. What it says is for developers: it may tell more than a visitor is to know."""
    error = decode_exception(record.result)
    return f"{type(error).__name__}: {error}" if settings.DEBUG else type(error).__name__


def _measured(meta: Any) -> Status:
    """What a task has said with `update_state(meta=…)`, in any of the words that are usual."""
    if not isinstance(meta, dict):
        return {}
    done, total, percent = _number(meta, "done", "current"), _number(meta, "total"), _number(meta, "percent")
    if percent is None and done is not None and total:
        percent = 100 * done / total
    said = {"done": done, "total": total, "percent": None if percent is None else min(100, max(0, int(percent)))}
    text = next((str(meta[name]) for name in ("text", "message", "description", "status") if meta.get(name)), None)
    return said if text is None else said | {"text": text}


def _number(meta: dict[str, Any], *names: str) -> float | None:
    found = next((meta[name] for name in names if isinstance(meta.get(name), (int, float))), None)
    return found if found is not None and math.isfinite(found) else None
