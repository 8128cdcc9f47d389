"""The tasks of `bench.django`, through `django.tasks` (or its backport) on both sides."""

from __future__ import annotations

import time
from typing import Any

import django
from django.apps import apps

from .. import workload

if not apps.ready:
    django.setup()

try:
    from django.tasks import default_task_backend, task
except ImportError:
    from django_tasks import default_task_backend, task


@task
def _add(x: int, y: int) -> int:
    return workload.add(x, y)


@task
def _stamp() -> int:
    return workload.stamp()


@task
def _pid() -> int:
    return workload.pid()


def add(x: int, y: int) -> Any:
    return _add.enqueue(x, y)


def stamp() -> Any:
    return _stamp.enqueue()


def pid() -> Any:
    return _pid.enqueue()


def value(handle: Any, timeout_seconds: float) -> Any:
    deadline = time.monotonic() + timeout_seconds
    while not handle.is_finished and time.monotonic() < deadline:
        time.sleep(0.002)
        handle.refresh()
    return handle.return_value


def key(handle: Any) -> str:
    return str(handle.id)


def find(key: str) -> Any:
    return default_task_backend.get_result(key)
