"""How far a task is, for whoever may see it: asked once, as JSON, or told each time that it changes, as server-sent events."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import aclosing
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from django.http import Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ..core.errors import CeleriacError
from . import progress
from .keys import task_of

RETRY_MILLISECONDS = 1000
"""After which a browser asks again when a stream has ended."""
LAST = "end"
"""The id of the event after which there is none: a browser that asks again all the same is told to stop."""
AWAY = ": results cannot be read just now\n\n"

_streams = threading.Lock()
_open_streams = 0


@never_cache
@require_GET
def status(request: Any, key: str) -> HttpResponse:
    """The status as JSON. 404: the key is not for this visitor. 503: results cannot be read just now."""
    try:
        found = progress.status_of(_task(request, key))
    except (CeleriacError, OSError):
        return JsonResponse({"detail": "Results cannot be read just now."}, status=503)
    return JsonResponse(found, encoder=progress.Encoder)


@never_cache
@require_GET
def events(request: Any, key: str) -> HttpResponse:
    """The status as server-sent events: at once, then with each change, for CELERIAC_PROGRESS_SECONDS at most; a browser asks again by itself.

    204, which says "do not ask again": the task has ended and this browser knows, or this server has no thread to spare for it.
    """
    task_id = _task(request, key)
    if request.headers.get("Last-Event-ID") == LAST:
        return HttpResponse(status=204)
    close_old_connections()  # what the session was read with is not needed while the stream lasts
    if isinstance(request, ASGIRequest):
        return _stream(_aevents(task_id))
    if not request.META.get("wsgi.multithread") or not _take_stream():
        return HttpResponse(status=204)
    return _stream(_Place(_events(task_id)))


def _task(request: Any, key: str) -> str:
    task_id = task_of(key, getattr(request, "user", None))
    if task_id is None:
        raise Http404("No such task, or it is not yours.")
    return task_id


# -- streams -----------------------------------------------------------------------------------------------------------------


def _stream(content: Any) -> StreamingHttpResponse:
    headers = {
        "X-Accel-Buffering": "no",  # nginx
        "Content-Encoding": "identity",  # Django's GZipMiddleware would hold events back
    }
    return StreamingHttpResponse(content, content_type="text/event-stream", headers=headers)


def _events(task_id: str) -> Generator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    try:
        for found in progress.follow(task_id, _seconds()):
            yield _event(found)
    except (CeleriacError, OSError):
        yield AWAY


async def _aevents(task_id: str) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    try:
        async with aclosing(progress.afollow(task_id, _seconds())) as changes:
            async for found in changes:
                yield _event(found)
    except (CeleriacError, OSError):
        yield AWAY


def _event(found: progress.Status | None) -> str:
    if found is None:
        return ":\n\n"
    data = json.dumps(found, cls=progress.Encoder)
    return f"id: {LAST}\ndata: {data}\n\n" if found["ready"] else f"data: {data}\n\n"


def _seconds() -> float:
    return float(getattr(settings, "CELERIAC_PROGRESS_SECONDS", 25.0))


def _take_stream() -> bool:
    """Under WSGI a stream keeps a thread of the server busy; so there are CELERIAC_PROGRESS_STREAMS at a time in a process, and other pages ask now and then instead."""
    global _open_streams
    with _streams:
        if _open_streams >= getattr(settings, "CELERIAC_PROGRESS_STREAMS", 4):
            return False
        _open_streams += 1
        return True


class _Place:
    """A stream that was let in; its place is free again when the response is closed."""

    def __init__(self, content: Generator[str]) -> None:
        self._content = content
        self._taken = True

    def __iter__(self) -> Iterator[str]:
        return self._content

    def close(self) -> None:
        global _open_streams
        self._content.close()
        with _streams:
            _open_streams -= self._taken
            self._taken = False
