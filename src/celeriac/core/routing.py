"""Which queue a task goes to: Celery's `task_routes` and `task_queues`.

A call's own options go before its task's, those before the routes, and those before the defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct


class Queue(Struct, frozen=True):
    """One entry of `task_queues`. Only RabbitMQ knows exchanges and routing keys; elsewhere a message goes to its queue by name."""

    name: str
    exchange: str = ""
    """Empty: the name."""
    routing_key: str = ""
    """Empty: the name."""
    options: dict[str, Any] = {}
    """What else was given (`queue_arguments`, `max_priority`, …), for engines that know it."""


def queues_from(value: Any) -> tuple[Queue, ...]:
    """`task_queues` as people write it: names, Queues, Kombu's Queues, dicts with a `name`; a list of them, or a dict by name. Raises ValueError."""
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, Mapping):
        value = [_queue_from(options, name) for name, options in value.items()]
    if not isinstance(value, Iterable):
        raise ValueError(f"{value!r} is no list of queues.")
    queues = tuple(_queue_from(entry) for entry in value)
    names = [queue.name for queue in queues]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice.")
    return queues


def _queue_from(entry: Any, name: str = "") -> Queue:
    if isinstance(entry, Queue):
        return entry
    if isinstance(entry, str):
        return Queue(entry)
    if entry is None and name:
        return Queue(name)
    if isinstance(entry, Mapping):
        options = dict(entry)
    else:  # kombu.Queue, or something like it
        options = {key: getattr(entry, key, None) for key in ("name", "exchange", "routing_key", "queue_arguments", "max_priority")}
    name = name or options.pop("name", None) or options.pop("queue", None) or ""
    options.pop("name", None)
    if not name or not isinstance(name, str):
        raise ValueError(f"{entry!r} has no name.")
    exchange = options.pop("exchange", None)
    options.pop("exchange_type", None)
    key = options.pop("routing_key", None) or options.pop("binding_key", None)
    exchange_name = exchange if isinstance(exchange, str) else getattr(exchange, "name", "")
    return Queue(name, exchange_name or "", key or "", {key: value for key, value in options.items() if value is not None})


class Route(Struct, frozen=True):
    """Where a call goes."""

    queue: str
    exchange: str
    routing_key: str
    priority: int
