"""`self.request`: what a running task may know of its own call, under the names of Celery's context."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from ..core.message import Delivery, Message

if TYPE_CHECKING:
    from .steps import Kept
    from .task import Task

_DIRECT = Message(id="", task="", body=Raw(b"[[],{},null]"))


class Request:
    """One run of a task. Cheap to make: what Celery's users may ask for is looked up in the message when they ask, and then remembered.

    Attributes may be set, as with Celery's context. Custom headers are attributes too, where no name of this class is in the way.
    """

    id: str | None
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    hostname: str
    is_eager: bool
    called_directly: bool = False
    children: list[Any]
    """The results of the tasks that this run has sent."""

    retries: int
    eta: str | None
    expires: str | None
    root_id: str | None
    parent_id: str | None
    group: str | None
    group_index: int | None
    correlation_id: str | None
    reply_to: str
    headers: dict[str, Any] | None
    timelimit: list[float | None]
    callbacks: list[dict[str, Any]] | None
    errbacks: list[dict[str, Any]] | None
    chain: list[dict[str, Any]] | None
    chord: dict[str, Any] | None
    origin: str
    shadow: str | None
    ignore_result: bool
    argsrepr: str
    kwargsrepr: str
    stamps: dict[str, Any]
    stamped_headers: list[str] | None
    replaced_task_nesting: int
    delivery_info: dict[str, Any]
    properties: dict[str, Any]
    lang: str
    utc: bool
    logfile: str | None
    loglevel: int | None

    message: Message
    embed: dict[str, Any]
    delivery: Delivery | None
    is_held: Callable[[], bool] = staticmethod(lambda: True)
    """Whether the message is still ours, where the results live elsewhere and so cannot tell."""
    running: Task[..., Any] | None = None
    """The task that runs; set when the run begins."""
    outer: Request | None = None
    """The run inside which this one happens."""
    may_join: bool = False
    """Whether waiting for a result inside this run is allowed."""
    entered: bool = True
    """True when `Task.__call__` must take a further call for a direct one."""
    retry_asked: BaseException | None = None
    """What `retry(throw=False)` returned."""
    exposed: bool = False
    """True while the task's own code runs: only then an exception may be raised in it from outside (a time limit, a revoke)."""
    ended_by: BaseException | None = None
    """The exception that was raised in it from outside."""
    kept_steps: Kept | None = None
    """The durable steps of this run, once there is one."""
    additions: list[Any]
    """Signatures, in their normal form, that this run has added to its chord."""

    def __init__(
        self,
        message: Message,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        embed: dict[str, Any],
        *,
        hostname: str,
        delivery: Delivery | None = None,
        is_eager: bool = False,
    ) -> None:
        self.message = message
        self.id = message.id
        self.task = message.task
        self.args = args
        self.kwargs = kwargs
        self.embed = embed
        self.hostname = hostname
        self.delivery = delivery
        self.is_eager = is_eager
        self.children = []
        self.ignore_result = message.ignore_result  # asked for in every run, so not looked up then
        if message.headers:
            self.__class__ = _WithHeaders
        self.additions = []

    @classmethod
    def direct(cls, task: Task[..., Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Request:
        """The request of a task that is called as a plain function: no message, no id."""
        request = cls(_DIRECT, args, {} if kwargs is None else kwargs, {}, hostname="")
        request.id = None
        request.task = task.name
        request.called_directly = True
        request.running = task
        return request

    def children_as_tuples(self) -> list[Any]:
        """The children as a result record holds them."""
        return [child.as_tuple() for child in self.children] if self.children else []

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)

    def update(self, *others: Mapping[str, Any], **attributes: Any) -> None:
        for other in others:
            self.__dict__.update(other)
        self.__dict__.update(attributes)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name in (
            "id",
            "task",
            "args",
            "kwargs",
            *_FROM_MESSAGE,
            "ignore_result",
            "hostname",
            "is_eager",
            "called_directly",
            "children",
        ):
            yield name, getattr(self, name)

    def __repr__(self) -> str:
        return f"<Context: {dict(self)!r}>"


def _delivery_info(request: Request) -> dict[str, Any]:
    message, delivery = request.message, request.delivery
    return {
        "exchange": message.exchange,
        "routing_key": message.routing_key or message.queue,
        "priority": message.priority,
        "redelivered": delivery is not None and delivery.lease.token > 1,
        "is_eager": request.is_eager,
    }


def _properties(request: Request) -> dict[str, Any]:
    message = request.message
    return {
        "correlation_id": message.id,
        "reply_to": message.reply_to,
        "content_type": message.content_type,
        "content_encoding": "utf-8",
        "delivery_mode": 2,
        "priority": message.priority,
    }


_FROM_MESSAGE: dict[str, Callable[[Request], Any]] = {
    "lang": lambda r: "py",
    "retries": lambda r: r.message.retries,
    "eta": lambda r: r.message.eta.isoformat() if r.message.eta is not None else None,
    "expires": lambda r: r.message.expires.isoformat() if r.message.expires is not None else None,
    "root_id": lambda r: r.message.root_id or r.id,
    "parent_id": lambda r: r.message.parent_id,
    "group": lambda r: r.message.group,
    "group_index": lambda r: r.message.group_index,
    "correlation_id": lambda r: r.id,
    "reply_to": lambda r: r.message.reply_to,
    "headers": lambda r: r.message.headers or None,
    "timelimit": lambda r: [r.message.time_limit, r.message.soft_time_limit],
    "callbacks": lambda r: r.embed.get("callbacks"),
    "errbacks": lambda r: r.embed.get("errbacks"),
    "chain": lambda r: r.embed.get("chain"),
    "chord": lambda r: r.embed.get("chord"),
    "origin": lambda r: r.message.origin,
    "shadow": lambda r: r.message.shadow,
    "argsrepr": lambda r: r.message.argsrepr,
    "kwargsrepr": lambda r: r.message.kwargsrepr,
    "stamps": lambda r: r.message.stamps,
    "stamped_headers": lambda r: r.message.stamped_headers,
    "replaced_task_nesting": lambda r: r.message.replaced_task_nesting,
    "delivery_info": _delivery_info,
    "properties": _properties,
    "utc": lambda r: True,
    "logfile": lambda r: None,
    "loglevel": lambda r: None,
}


class _Remembered:
    """An attribute that is read from the message when it is first asked for. (A `__getattr__` for all of them would slow down every other attribute too.)"""

    def __init__(self, name: str, read: Callable[[Request], Any]) -> None:
        self.name = name
        self.read = read

    def __get__(self, request: Request | None, owner: type[Request]) -> Any:
        if request is None:
            return self
        value = request.__dict__[self.name] = self.read(request)
        return value


for _name, _read in _FROM_MESSAGE.items():
    setattr(Request, _name, _Remembered(_name, _read))


class _WithHeaders(Request):
    """The request of a message with custom headers, which are its attributes."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            headers = self.message.headers
            if name.startswith("__") or name not in headers:
                raise AttributeError(f"The request of a task has no attribute {name!r}.")
            value = self.__dict__[name] = headers[name]
            return value


_current: ContextVar[Request | None] = ContextVar("celeriac_request", default=None)


def current_request() -> Request | None:
    """The request of the task that runs here: in a worker or eagerly, not as a plain function call; None outside of tasks."""
    request = _current.get()
    while request is not None and request.called_directly:
        request = request.outer
    return request
