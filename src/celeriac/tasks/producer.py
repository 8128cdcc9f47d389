"""From a call to a message in the engine: the second of the three steps of a `delay()` (task → producer → engine).

`Producer.message` builds and checks, and publishes nothing; `Producer.publish` hands messages to the engine within `broker_publish_timeout`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct

from ..contracts.broker import Broker
from ..core import events
from ..core.errors import EncodeError, EngineCorrupt, EngineUnavailable, EngineUnsure, EnqueueError, Retry
from ..core.ids import new_id
from ..core.message import Join, Message
from ..core.routing import Route, Router
from ..core.serialize import encode_body
from ..core.settings import Settings
from .request import Request

if TYPE_CHECKING:
    from .task import Task


class Defaults(Struct, kw_only=True):
    """What a task says about each of its calls, with the settings already asked."""

    settings: Settings
    routing: dict[str, Any] = {}
    """queue, exchange, routing_key, priority: those the task names."""
    serializer: str
    expires: float | datetime | None
    time_limit: float | None
    soft_time_limit: float | None
    ignore_result: bool
    always_eager: bool
    check: Callable[..., Any] | None
    """Called with the arguments of each call; raises TypeError when the task would not take them."""
    has_shadow_name: bool
    route: Route | None = None
    """The way of a call without options, once it is known and if it is always the same."""


_ROUTING = ("queue", "exchange", "routing_key", "priority")

OPTIONS = frozenset({
    # when, where, how important
    "countdown", "eta", "expires", "queue", "exchange", "routing_key", "priority", "router",
    # what it is called and belongs to
    "task_id", "shadow", "headers", "root_id", "parent_id", "group_id", "group_index", "reply_to", "correlation_id",
    "stamped_headers", "replaced_task_nesting", "argsrepr", "kwargsrepr", "ignore_result",
    # what follows
    "link", "link_error", "chain", "chord", "add_to_parent",
    # limits and format
    "time_limit", "soft_time_limit", "serializer", "retries",
    # publishing
    "retry", "retry_policy",
    # meant for AMQP or for Celery's connection pools; accepted, without effect here
    "producer", "publisher", "connection", "compression", "delivery_mode", "mandatory", "immediate", "declare", "exchange_type",
    "content_type", "content_encoding", "expiration", "timeout", "confirm_timeout", "task_type", "chord_size", "visitor",
})  # fmt: skip


class Outbox(Protocol):
    """Keeps what is to be published only when something else is committed."""

    def __call__(self, messages: Sequence[Message], joins: Sequence[Join], /) -> bool:
        """Takes them, if they are a part of something; False: publish them now."""
        ...

    def flush(self) -> None:
        """Publishes what was taken here, as if it had been committed. Raises nothing."""
        ...


_NO_OPTIONS: dict[str, Any] = {}
_REPR_CHARACTERS = 1024


class Producer:
    """Builds messages and publishes them. Safe to use from any thread, and after a fork."""

    def __init__(
        self,
        broker: Broker,
        router: Router,
        settings: Settings,
        origin: str | None = None,
        find_task: Callable[[str], Task[..., Any] | None] | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.broker = broker
        self.router = router
        self.settings = settings
        self.origin = origin
        """Who sends, in every message; None stands for `gen<pid>@<host>`."""
        self.find_task = find_task or _nothing_known
        """The task of a name, or None when nobody here knows it."""
        self.outbox = outbox
        """Asked first, with everything that is to be published: True, and it has taken it and will see to it."""
        self._publish_timeout_seconds = float(settings.broker_publish_timeout)
        self._repr_levels = int(settings.task_repr_maxlevels)

    # -- building ------------------------------------------------------------------------------------------------------------

    def message(
        self,
        task_name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        task: Task[..., Any] | None = None,
        options: Mapping[str, Any] = _NO_OPTIONS,
        parent: Request | None = None,
    ) -> Message:
        """The message for one call. Publishes nothing.

        `task` gives defaults (queue, limits, …) where the options and the routes say nothing; `parent` is the run that makes the call.

        Raises: EncodeError: an argument or an option cannot travel; it is named.
                TypeError, ValueError: an option has an impossible value, or does not exist.
        """
        defaults = task.defaults(self.settings) if task is not None else None
        if not options and defaults is not None:
            id = new_id()
            return self.member(task_name, args, kwargs, defaults, parent, id=id, root_id=id if parent is None else parent.root_id)
        get = options.get
        if not options.keys() <= OPTIONS:
            _check_options(options)
        now = time.time()

        delay_seconds, eta = _start_time(get("countdown"), get("eta"), now)
        expires = get("expires")
        if expires is None and defaults is not None:
            expires = defaults.expires
        settings = self.settings
        time_limit, soft_time_limit = get("time_limit"), get("soft_time_limit")
        ignore_result = get("ignore_result")
        serializer = get("serializer")
        if defaults is not None:
            time_limit = defaults.time_limit if time_limit is None else time_limit
            soft_time_limit = defaults.soft_time_limit if soft_time_limit is None else soft_time_limit
            ignore_result = defaults.ignore_result if ignore_result is None else ignore_result
            serializer = serializer or defaults.serializer
        elif ignore_result is None:
            ignore_result = settings.task_ignore_result
        time_limit = None if time_limit is None else _seconds(time_limit, "time_limit")
        soft_time_limit = None if soft_time_limit is None else _seconds(soft_time_limit, "soft_time_limit")
        if soft_time_limit and time_limit and soft_time_limit > time_limit:
            raise ValueError(
                f"Task {task_name}: soft_time_limit ({soft_time_limit:g} s) must not be longer than time_limit ({time_limit:g} s)."
            )
        content_type, body = encode_body(
            args, kwargs, _embed(options), serializer or settings.task_serializer, accept=settings.accept_content
        )

        route = self._route(task_name, args, kwargs, defaults, options, parent)
        task_id = get("task_id")
        task_id = new_id() if task_id is None else _task_id(task_id)
        root_id, parent_id = get("root_id"), get("parent_id")
        if parent is not None:
            root_id = root_id or parent.root_id
            parent_id = parent_id or parent.id
        stamped = get("stamped_headers")
        argsrepr, kwargsrepr = get("argsrepr"), get("kwargsrepr")
        return Message(
            id=task_id,
            task=task_name,
            body=body,
            queue=route.queue,
            priority=route.priority,
            content_type=content_type,
            delay_seconds=delay_seconds,
            eta=eta,
            expires=None if expires is None else _expiry_time(expires, now),
            root_id=root_id or task_id,
            parent_id=parent_id,
            group=get("group_id"),
            group_index=get("group_index"),
            retries=get("retries") or 0,
            time_limit=time_limit,
            soft_time_limit=soft_time_limit,
            shadow=get("shadow"),
            argsrepr=self._repr(args) if argsrepr is None else argsrepr,
            kwargsrepr=self._repr(kwargs) if kwargsrepr is None else kwargsrepr,
            origin=self.origin or _own_name(),
            reply_to=get("reply_to") or "",
            ignore_result=bool(ignore_result),
            replaced_task_nesting=get("replaced_task_nesting") or 0,
            stamped_headers=list(stamped) if stamped else None,
            stamps=_json_values({name: options[name] for name in stamped if name in options}, "stamps") if stamped else {},
            headers=_json_values(get("headers"), "headers"),
            exchange=route.exchange,
            routing_key=route.routing_key,
        )

    def member(
        self, task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any], defaults: Defaults, parent: Request | None, **fields: Any
    ) -> Message:
        """`message` for a call without options: what `delay()` makes, and each member of a group. `fields` are the message's id, its root, and its place in a workflow."""
        content_type, body = encode_body(args, kwargs, None, defaults.serializer, accept=self.settings.accept_content)
        route = defaults.route or self._route(task_name, args, kwargs, defaults, _NO_OPTIONS, parent)
        if parent is not None and self.settings.task_inherit_parent_priority:
            route = self._route(task_name, args, kwargs, defaults, _NO_OPTIONS, parent)
        expires = defaults.expires
        return Message(
            task=task_name,
            body=body,
            queue=route.queue,
            priority=route.priority,
            content_type=content_type,
            expires=None if expires is None else _expiry_time(expires, time.time()),
            parent_id=None if parent is None else parent.id,
            time_limit=defaults.time_limit,
            soft_time_limit=defaults.soft_time_limit,
            argsrepr=self._repr(args),
            kwargsrepr=self._repr(kwargs) if kwargs else "{}",
            origin=self.origin or _own_name(),
            ignore_result=defaults.ignore_result,
            exchange=route.exchange,
            routing_key=route.routing_key,
            **fields,
        )

    def retry_message(self, message: Message, retry: Retry, request: Request, *, whole: bool = False) -> Message:
        """The same call once more: same id, one more retry, due when `retry` says, with its new arguments and options.

        What its join gave it is read again by the next try, unless the arguments are new; with `whole`, it goes into the message.
        """
        now = time.time()
        options = retry.options
        if isinstance(retry.when, datetime):
            delay_seconds, eta = _start_time(None, retry.when, now)
        else:
            delay_seconds, eta = _start_time(retry.when or 0, None, now)
        changes: dict[str, Any] = {"retries": message.retries + 1, "delay_seconds": delay_seconds, "eta": eta}
        whole = whole and message.joined is not None
        if whole or retry.new_args is not None or retry.new_kwargs is not None or options.keys() & {"link", "link_error", "serializer"}:
            changes["joined"] = None
            args = request.args if retry.new_args is None else tuple(retry.new_args)
            kwargs = request.kwargs if retry.new_kwargs is None else retry.new_kwargs
            embed: dict[str, Any] = {**request.embed, **{name: value for name, value in (_embed(options) or {}).items() if value}}
            serializer = options.get("serializer") or _SERIALIZERS.get(message.content_type, "json")
            changes["content_type"], changes["body"] = encode_body(args, kwargs, embed, serializer, accept=self.settings.accept_content)
            changes["argsrepr"], changes["kwargsrepr"] = self._repr(args), self._repr(kwargs)
        if options:
            if not options.keys() <= OPTIONS:
                _check_options(options)
            for name in ("time_limit", "soft_time_limit", "shadow", "ignore_result"):
                if options.get(name) is not None:
                    changes[name] = options[name]
            if options.get("expires") is not None:
                changes["expires"] = _expiry_time(options["expires"], now)
            if options.get("headers"):
                changes["headers"] = {**message.headers, **_json_values(options["headers"], "headers")}
            if any(options.get(name) is not None for name in _ROUTING):
                # Where the message was is where the retry goes, except for what is given.
                here: dict[str, Any] = {"queue": message.queue, "priority": message.priority}
                if message.exchange or message.routing_key:
                    here |= {"exchange": message.exchange, "routing_key": message.routing_key}
                if options.get("queue") is not None:
                    here = {"priority": message.priority}
                here |= {name: options[name] for name in _ROUTING if options.get(name) is not None}
                route = self.router.route(message.task, request.args, request.kwargs, here)
                changes |= {"queue": route.queue, "priority": route.priority, "exchange": route.exchange, "routing_key": route.routing_key}
        return msgspec.structs.replace(message, **changes)

    def _route(
        self,
        task_name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        defaults: Defaults | None,
        options: Mapping[str, Any],
        parent: Request | None,
    ) -> Route:
        wanted = dict(defaults.routing) if defaults is not None else {}
        for name in _ROUTING:
            value = options.get(name)
            if value is not None:
                wanted[name] = value
        if parent is not None and "priority" not in wanted and self.settings.task_inherit_parent_priority:
            wanted["priority"] = parent.message.priority
            return self.router.route(task_name, tuple(args), dict(kwargs), {**options, **wanted})
        route = self.router.route(task_name, tuple(args), dict(kwargs), {**options, **wanted})
        if defaults is not None and not options and not self.router.depends_on_arguments:
            defaults.route = route
        return route

    def _repr(self, value: Any) -> str:
        """At most 1024 characters of what the arguments look like, for people; in logs, events and dashboards."""
        for item in value.values() if type(value) is dict else value:
            kind = type(item)
            if kind is str:
                if len(item) > 200:
                    return short_repr(value, self._repr_levels)
            elif kind is not int and kind is not float and kind is not bool and item is not None:
                return short_repr(value, self._repr_levels)
        try:
            text = repr(value)
        except ValueError:  # an int beyond sys.set_int_max_str_digits
            return short_repr(value, self._repr_levels)
        return text if len(text) <= _REPR_CHARACTERS else text[: _REPR_CHARACTERS - 3] + "..."

    # -- publishing ----------------------------------------------------------------------------------------------------------

    def publish(
        self,
        messages: Sequence[Message],
        *,
        joins: Sequence[Join] = (),
        retry: bool | None = None,
        retry_policy: Mapping[str, Any] | None = None,
        at_once: bool = False,
    ) -> None:
        """→ the engine, all of them or none, with the joins that they are members of. When it returns, the engine holds them, or the outbox does; with `at_once` the outbox is not asked.

        An engine that cannot be reached is tried again, as `task_publish_retry_policy` says, but never for longer than `broker_publish_timeout` in all;
        and not at all while it counts as away, after several failures: then this raises at once.

        Raises: EnqueueError: none of them is in any queue; or, where its `unsure` says so, only the answer is known to be missing.
        """
        if self.outbox is not None and not at_once and self.outbox(messages, joins):
            return
        if events.before_task_publish.receivers:
            messages = announced(messages, retry_policy)
        started = time.monotonic()
        try:
            if joins:
                self.broker.publish(messages, joins=joins, timeout_seconds=self._publish_timeout_seconds)
            else:
                self.broker.publish(messages, timeout_seconds=self._publish_timeout_seconds)
        except (EngineUnavailable, OSError) as problem:
            self._publish_again(messages, joins, problem, started, retry, retry_policy)
        if events.after_task_publish.receivers:
            tell_published(messages)

    def _publish_again(
        self,
        messages: Sequence[Message],
        joins: Sequence[Join],
        problem: Exception,
        started: float,
        retry: bool | None,
        given_policy: Mapping[str, Any] | None,
    ) -> None:
        """Further tries, in what is left of the time since `started`."""
        policy = {**_PUBLISH_POLICY, **(self.settings.task_publish_retry_policy or {}), **(given_policy or {})}
        if retry is None:
            retry = self.settings.task_publish_retry
        attempts = policy["max_retries"]
        unsure = isinstance(problem, EngineUnsure)
        pause = float(policy["interval_start"] or 0)
        tries = 0
        while retry and _is_worth_another_try(problem) and (attempts is None or tries < attempts):
            left = self._publish_timeout_seconds - (time.monotonic() - started) - pause
            if left <= 0:
                break
            time.sleep(pause)
            tries += 1
            pause = min(pause + float(policy["interval_step"] or 0), float(policy["interval_max"] or pause))
            try:
                if joins:
                    self.broker.publish(messages, joins=joins, timeout_seconds=left)
                else:
                    self.broker.publish(messages, timeout_seconds=left)
            except (EngineUnavailable, OSError) as again:
                problem = again
                unsure = unsure or isinstance(problem, EngineUnsure)
            else:
                return
        raise self._enqueue_error(messages, problem, unsure=unsure) from problem

    def _enqueue_error(self, messages: Sequence[Message], problem: Exception, *, unsure: bool) -> EnqueueError:
        first = messages[0]
        what = f"Task {first.task}[{first.id}]" if len(messages) == 1 else f"{len(messages)} tasks (the first: {first.task}[{first.id}])"
        again = "call again"
        if unsure:
            fate = "may or may not be in its queue" if len(messages) == 1 else "may or may not be in their queues, some or all"
            again += (
                " with the same task_id, which changes nothing if it is there"
                if self.broker.capabilities.ids
                else "; it may then run twice"
            )
        else:
            fate = "could not be sent and is in no queue" if len(messages) == 1 else "could not be sent and are in no queue"
        return EnqueueError(
            f"{what} {fate}: {problem} "
            f"Check that the engine at {safe_url(self.broker.url)} runs and can be reached from here, then {again} "
            f"(broker_publish_timeout is {self._publish_timeout_seconds:g} s).",
            task_name=first.task,
            task_id=first.id,
            unsure=unsure,
        )


def _is_worth_another_try(problem: Exception) -> bool:
    return not isinstance(problem, EngineCorrupt) and getattr(problem, "repeatable", True) and getattr(problem, "tried", True)


_PUBLISH_POLICY = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
_SERIALIZERS = {
    "application/json": "json",
    "application/x-python-serialize": "pickle",
    "application/x-yaml": "yaml",
    "application/x-msgpack": "msgpack",
}


def _nothing_known(name: str) -> None:
    return None


# -- options -------------------------------------------------------------------------------------------------------------------


def _check_options(options: Mapping[str, Any]) -> None:
    unknown = options.keys() - OPTIONS - set(options.get("stamped_headers") or ())
    if not unknown:
        return
    from difflib import get_close_matches

    name = min(unknown)
    close = get_close_matches(name, OPTIONS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else " The task's own arguments go into args= and kwargs=."
    raise TypeError(f"apply_async() has no option {name!r}.{hint}")


def _start_time(countdown: Any, eta: Any, now: float) -> tuple[float | None, datetime | None]:
    """`delay_seconds` and `eta` of a message. A naive `eta` is UTC, as in Celery."""
    if countdown is not None:
        seconds = _seconds(countdown, "countdown")
        if seconds <= 0:
            return None, None
        return seconds, _moment(now, seconds, "countdown")
    if eta is None or eta == "":
        return None, None
    return None, _utc(eta, "eta")


def _expiry_time(expires: Any, now: float) -> datetime:
    """A number counts from now; a moment is one."""
    if isinstance(expires, (int, float, timedelta)):
        return _moment(now, _seconds(expires, "expires"), "expires")
    return _utc(expires, "expires")


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        raise TypeError(f"{name}={value!r}: give a number of seconds.")
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r}: give a number of seconds.") from None
    if seconds != seconds:
        raise ValueError(f"{name}={value!r} is not a number of seconds.")
    return seconds


def _moment(now: float, seconds: float, name: str) -> datetime:
    try:
        return datetime.fromtimestamp(now + seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise ValueError(f"{name}={seconds:g} s from now is beyond the year 9999.") from None


def _utc(value: Any, name: str) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name}={value!r} is not an ISO 8601 date and time.") from None
    if not isinstance(value, datetime):
        raise TypeError(f"{name}={value!r}: give a datetime{' or a number of seconds' if name == 'expires' else ''}.")
    if value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        return value.replace(tzinfo=UTC)


def _task_id(value: Any) -> str:
    text = str(value)
    if not text:
        raise ValueError("task_id='' is no id; leave it out to get a new one.")
    return text


def _embed(options: Mapping[str, Any]) -> dict[str, Any] | None:
    link, link_error = options.get("link"), options.get("link_error")
    chain, chord = options.get("chain"), options.get("chord")
    if not link and not link_error and not chain and not chord:
        return None
    return {"callbacks": _as_list(link), "errbacks": _as_list(link_error), "chain": chain or None, "chord": chord or None}


def _as_list(value: Any) -> list[Any] | None:
    if not value:
        return None
    if isinstance(value, Mapping):
        return [value]
    return list(value)


def _json_values(values: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """What the caller gave, as JSON can carry it; whoever cannot travel is named here and not somewhere inside an engine."""
    if not values:
        return {}
    plain = {}
    for key, value in values.items():
        try:
            plain[str(key)] = msgspec.to_builtins(value, str_keys=True)
        except (TypeError, ValueError, RecursionError) as problem:
            raise EncodeError(f"{name}[{key!r}] cannot be sent: {problem}", path=f"{name}[{key!r}]") from None
    return plain


# -- signals, names, texts -------------------------------------------------------------------------------------------------------


def _headers(message: Message) -> dict[str, Any]:
    """The message's headers, as Celery's protocol 2 and its signals have them."""
    return {
        "lang": "py",
        "task": message.task,
        "id": message.id,
        "shadow": message.shadow,
        "eta": message.eta.isoformat() if message.eta else None,
        "expires": message.expires.isoformat() if message.expires else None,
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "timelimit": [message.time_limit, message.soft_time_limit],
        "root_id": message.root_id,
        "parent_id": message.parent_id,
        "argsrepr": message.argsrepr,
        "kwargsrepr": message.kwargsrepr,
        "origin": message.origin,
        "ignore_result": message.ignore_result,
        "replaced_task_nesting": message.replaced_task_nesting,
        "stamped_headers": message.stamped_headers,
        "stamps": message.stamps,
        **message.headers,
    }


def announced(messages: Sequence[Message], retry_policy: Mapping[str, Any] | None = None) -> list[Message]:
    """The messages as the receivers of `before_task_publish` have them: whoever publishes asks them first."""
    return [_announce(message, retry_policy) for message in messages]


def tell_published(messages: Sequence[Message]) -> None:
    """Sends `after_task_publish`."""
    for message in messages:
        events.after_task_publish.send(
            sender=message.task,
            headers=_headers(message),
            body=message.body,
            exchange=message.exchange,
            routing_key=message.routing_key or message.queue,
        )


def _announce(message: Message, retry_policy: Mapping[str, Any] | None) -> Message:
    """Sends `before_task_publish`. What a receiver adds to or changes in `headers` travels with the message, as with Celery; tracing relies on it."""
    headers = _headers(message)
    before = dict(headers)
    events.before_task_publish.send(
        sender=message.task,
        body=msgspec.json.decode(message.body),
        exchange=message.exchange,
        routing_key=message.routing_key or message.queue,
        headers=headers,
        properties={
            "correlation_id": message.id,
            "reply_to": message.reply_to,
            "priority": message.priority,
            "content_type": message.content_type,
            "content_encoding": "utf-8",
        },
        declare=[],
        retry_policy=dict(retry_policy or {}),
    )
    if headers == before:
        return message
    own = {name for name in before if name not in message.headers}
    changes: dict[str, Any] = {"headers": _json_values({name: value for name, value in headers.items() if name not in own}, "headers")}
    for name in ("shadow", "argsrepr", "kwargsrepr", "origin", "ignore_result", "stamps", "stamped_headers"):
        if headers.get(name) != before[name]:
            changes[name] = headers.get(name)
    return msgspec.structs.replace(message, **changes)


_name: list[str] = []


def _own_name() -> str:
    """`gen<pid>@<host>`: Celery's name for a sender that is not a worker."""
    if not _name:
        _name.append(f"gen{os.getpid()}@{os.uname().nodename if hasattr(os, 'uname') else os.environ.get('COMPUTERNAME', '')}")
    return _name[0]


os.register_at_fork(after_in_child=_name.clear)


def safe_url(url: str) -> str:
    """A URL for people to read: without its password."""
    head, found, rest = url.partition("://")
    if not found or "@" not in rest:
        return url
    credentials, _, place = rest.rpartition("@")
    user = credentials.partition(":")[0]
    return f"{head}://{user}:**@{place}"


def short_repr(value: Any, levels: int = 3, characters: int = _REPR_CHARACTERS) -> str:
    """`repr`, but at most so deep and so long, and it looks at no more of a huge value than it shows."""
    pieces: list[str] = []
    _write_repr(value, levels, pieces, [characters])
    text = "".join(pieces)
    return text if len(text) <= characters else text[: characters - 3] + "..."


def _write_repr(value: Any, levels: int, pieces: list[str], room: list[int]) -> None:
    kind = type(value)
    if kind in _BRACKETS:
        opening, closing = _BRACKETS[kind]
        if kind is set and not value:
            _put("set()", pieces, room)
            return
        _put(opening, pieces, room)
        if levels < 0 and value:
            _put("...", pieces, room)
        else:
            for index, item in enumerate(value.items() if kind is dict else value):
                if room[0] <= 0:
                    return
                if index:
                    _put(", ", pieces, room)
                if kind is dict:
                    _write_repr(item[0], levels - 1, pieces, room)
                    _put(": ", pieces, room)
                    item = item[1]
                _write_repr(item, levels - 1, pieces, room)
            if kind is tuple and len(value) == 1:
                _put(",", pieces, room)
        _put(closing, pieces, room)
    elif kind is str or kind is bytes:
        _put(repr(value[: room[0] + 1]), pieces, room)
    elif kind is int and value.bit_length() > 8 * _REPR_CHARACTERS:
        _put(f"<int of {value.bit_length()} bits>", pieces, room)
    else:
        try:
            _put(repr(value), pieces, room)
        except Exception:
            _put(f"<{kind.__name__} whose repr() raises>", pieces, room)


_BRACKETS: dict[type, tuple[str, str]] = {tuple: ("(", ")"), list: ("[", "]"), dict: ("{", "}"), set: ("{", "}")}


def _put(text: str, pieces: list[str], room: list[int]) -> None:
    pieces.append(text)
    room[0] -= len(text)
