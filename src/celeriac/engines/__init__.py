"""Which engine a URL names. A further engine is its file and one line here; no other file learns its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import ImproperlyConfigured

if TYPE_CHECKING:
    from ..contracts.broker import Broker
    from ..contracts.engine import Engine
    from ..contracts.results import ResultBackend

_SCHEMES = "memory://, sqlite:///relative.db, sqlite:////absolute.db, postgresql://host/database, redis://host:6379/0 (also rediss, unix, sentinel, redis+cluster), amqp://host:5672/vhost (also amqps)"


def open_engine(
    url: str, *, clock: Clock = SYSTEM_CLOCK, task_queues: Any = None, replies: bool = False, **options: Any
) -> Engine | Broker:
    """The engine of this URL, as broker and result backend in one; RabbitMQ's is a broker alone. Connects to nothing yet: the first verb does.

    Raises: ImproperlyConfigured: nobody knows the URL's scheme, or the URL or an option is wrong.
    """
    scheme, separator, _ = url.partition("://")
    match scheme if separator else "":
        case "sqlite":
            from .sqlite import SQLiteEngine

            return SQLiteEngine(url, clock=clock, **options)
        case "memory":
            from .memory import MemoryEngine

            return MemoryEngine(url, clock=clock, **options)
        case "redis" | "rediss" | "redis+socket" | "unix" | "sentinel" | "redis+cluster" | "rediss+cluster":
            from .redis import RedisEngine

            return RedisEngine(url, clock=clock, **options)
        case "postgresql" | "postgres":
            from .postgresql import PostgreSQLEngine

            return PostgreSQLEngine(url, clock=clock, **options)
        case "amqp" | "amqps" | "pyamqp":
            from .rabbitmq import RabbitMQEngine

            return RabbitMQEngine(url, clock=clock, task_queues=task_queues, replies=replies, **options)
        case "django":
            raise ImproperlyConfigured(f"{url} is a database of a Django project: add 'celeriac.django' to its INSTALLED_APPS.")
        case "":
            raise ImproperlyConfigured(f"{url!r} is not the URL of an engine. Use one of {_SCHEMES}.")
        case _:
            raise ImproperlyConfigured(f"No engine for {scheme}:// URLs is installed. Use one of {_SCHEMES}.")


def open_replies(broker: Broker) -> ResultBackend:
    """What `rpc://` names: results that the broker carries back to whoever called.

    Raises: ImproperlyConfigured: this broker does not.
    """
    replies: Callable[[], ResultBackend] | None = getattr(broker, "replies", None)
    if replies is None:
        raise ImproperlyConfigured(
            "result_backend 'rpc://' needs a RabbitMQ broker. Leave it out, and the broker's own engine keeps the results."
        )
    return replies()
