"""Which queue a task goes to: Celery's `task_routes` and `task_queues`.

A call's own options go before its task's, those before the routes, and those before the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from .errors import ImproperlyConfigured, QueueNotFound


class Queue(Struct, frozen=True):
    """One entry of `task_queues`. Only RabbitMQ knows exchanges and routing keys; elsewhere a message goes to its queue by name."""

    name: str
    exchange: str = ""
    """Empty: the name."""
    routing_key: str = ""
    """Empty: the name."""
    options: dict[str, Any] = {}
    """What else was given (`queue_arguments`, `max_priority`, …), for engines that know it."""
    exchange_type: str = "direct"
    """direct, topic or fanout."""

    def arguments(self, queue_type: str) -> dict[str, Any]:
        """RabbitMQ's arguments of this queue. What asks for more than a quorum queue can (priorities, exclusive, deleted with its last consumer) is a classic one."""
        found = dict(self.options.get("queue_arguments") or {})
        for name, argument, factor in _QUEUE_OPTIONS:
            if self.options.get(name) is not None:
                found.setdefault(argument, int(self.options[name] * factor))
        classic = "x-max-priority" in found or self.flags() != _DURABLE
        if "x-queue-type" not in found and queue_type == "quorum" and not classic:
            found["x-queue-type"] = "quorum"
        return found

    def flags(self) -> int:
        """Durable 2, exclusive 4, auto-delete 8, as `queue.declare` of AMQP has them."""
        options = self.options
        return 2 * (options.get("durable") is not False) + 4 * bool(options.get("exclusive")) + 8 * bool(options.get("auto_delete"))


_DURABLE = 2
_QUEUE_OPTIONS = (("max_priority", "x-max-priority", 1), ("message_ttl", "x-message-ttl", 1000), ("expires", "x-expires", 1000))


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
        options = {key: getattr(entry, key, None) for key in ("name", "exchange", "routing_key", *_KNOWN_OPTIONS)}
        options = {key: value for key, value in options.items() if value is not False or key == "durable"}
        if options.get("durable"):
            del options["durable"]  # as usual
    name = name or options.pop("name", None) or options.pop("queue", None) or ""
    options.pop("name", None)
    if not name or not isinstance(name, str):
        raise ValueError(f"{entry!r} has no name.")
    exchange = options.pop("exchange", None)
    kind = options.pop("exchange_type", None) or getattr(exchange, "type", None) or "direct"
    key = options.pop("routing_key", None) or options.pop("binding_key", None)
    exchange_name = exchange if isinstance(exchange, str) else getattr(exchange, "name", "")
    if kind not in _EXCHANGE_TYPES:
        raise ValueError(f"the exchange of {name!r} is of the type {kind!r}; there are {', '.join(_EXCHANGE_TYPES)}.")
    return Queue(name, exchange_name or "", key or "", {key: value for key, value in options.items() if value is not None}, kind)


_KNOWN_OPTIONS = ("queue_arguments", "max_priority", "message_ttl", "expires", "durable", "exclusive", "auto_delete")
_EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")


class Route(Struct, frozen=True):
    """Where a call goes."""

    queue: str
    exchange: str = ""
    """Empty: as the queue."""
    routing_key: str = ""
    """Empty: as the queue."""
    priority: int = 0


class Router:
    """Answers "where does this call go?", once for each task name unless a function has a say.

    `routes` is `task_routes`: a dict `{name, glob or compiled pattern: queue or options}`, a list of such pairs, a function, an object with
    `route_for_task`, the dotted path of one of these two, or a list of all that, of which the first that has an answer wins.
    """

    def __init__(
        self,
        routes: Any = None,
        *,
        default_queue: str = "celery",
        default_exchange: str | None = None,
        default_routing_key: str | None = None,
        default_priority: int | None = None,
        queues: Iterable[Queue] | None = None,
        create_missing: bool = True,
    ) -> None:
        self.default_queue = default_queue
        self.queues = {queue.name: queue for queue in queues or ()}
        self._defaults = Queue(default_queue, default_exchange or "", default_routing_key or "")
        self._default_priority = default_priority or 0
        self._create_missing = create_missing
        self._rules = _rules_from(routes)
        self._cache: dict[str, Route] = {}
        self.depends_on_arguments = any(not isinstance(rule, _Map) for rule in self._rules)
        """True when a function decides, so that two calls of one task may go to different queues."""

    def route(
        self,
        task_name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Route:
        """The way of one call; `options` are the call's own, which go before all routes.

        Raises: QueueNotFound: the queue is not in `task_queues`, and missing ones are not to be made.
                ValueError: a priority that is not 0 to 9.
                TypeError: a queue that is no name.
        """
        plain = not options or _ROUTING_OPTIONS.isdisjoint(options)
        if plain:
            known = self._cache.get(task_name)
            if known is not None:
                return known
        wanted = {name: options[name] for name in _ROUTING_OPTIONS if options.get(name) is not None} if options else {}
        found = self._ask_rules(task_name, args, kwargs or {}, options or {})
        route = self._resolve(task_name, {**found, **wanted})
        if plain and not self.depends_on_arguments:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            self._cache[task_name] = route
        return route

    def queue_names(self) -> list[str]:
        """What a worker reads that is told nothing else."""
        return list(self.queues) or [self.default_queue]

    def _ask_rules(self, task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        for rule in self._rules:
            answer = rule(task_name, args, kwargs, options)
            if answer:
                return _options_from(answer, f"the route of {task_name}")
        return {}

    def _resolve(self, task_name: str, wanted: Mapping[str, Any]) -> Route:
        exchange, routing_key = wanted.get("exchange"), wanted.get("routing_key")
        exchange = exchange if isinstance(exchange, str) else getattr(exchange, "name", None)
        name = wanted.get("queue")
        if name is not None and not isinstance(name, str):
            given, name = name, getattr(name, "name", None)  # a Queue
            if not isinstance(name, str):
                raise TypeError(f"{task_name}: queue={given!r}: give the name of a queue.")
        if not name and (exchange or routing_key):
            name = self._bound_to(exchange, routing_key)
        if not name:
            name = self.default_queue
        queue = self.queues.get(name)
        if queue is None:
            if not self._create_missing and (self.queues or name != self.default_queue):
                raise QueueNotFound(self._no_such_queue(task_name, name))
            queue = self._defaults if name == self.default_queue else Queue(name)
        priority = wanted.get("priority", self._default_priority)
        return Route(name, exchange or queue.exchange, routing_key or queue.routing_key, _checked_priority(priority, task_name))

    def _bound_to(self, exchange: str | None, routing_key: str | None) -> str | None:
        """The queue that RabbitMQ would choose by exchange and routing key; so the same call goes to the same queue on every engine."""
        for queue in self.queues.values():
            key = queue.routing_key or queue.name
            if exchange and exchange != (queue.exchange or queue.name):
                continue
            if routing_key is None or routing_key == key or (("*" in key or "#" in key) and _topic_pattern(key).fullmatch(routing_key)):
                return queue.name
        return None

    def _no_such_queue(self, task_name: str, name: str) -> str:
        from difflib import get_close_matches

        close = get_close_matches(name, self.queues, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return (
            f"Task {task_name} is routed to the queue {name!r}, which task_queues does not name ({', '.join(self.queues) or 'it is empty'}).{hint}"
            " Add it there, or set task_create_missing_queues = True."
        )


_ROUTING_OPTIONS = frozenset({"queue", "exchange", "routing_key", "priority"})
_HARMLESS_OPTIONS = frozenset({"exchange_type", "delivery_mode", "binding_key", "immediate", "mandatory", "compression", "declare"})
_CACHE_LIMIT = 10_000

Rule = Callable[[str, Sequence[Any], Mapping[str, Any], Mapping[str, Any]], Any]
"""(task name, args, kwargs, options) → a queue's name, options, or nothing."""


class _Map:
    """Routes by name: exact names first, then patterns in their order."""

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        self.names: dict[str, dict[str, Any]] = {}
        self.patterns: list[tuple[re.Pattern[str], dict[str, Any]]] = []
        for key, value in pairs:
            options = _options_from(value, f"task_routes[{key!r}]")
            if isinstance(key, re.Pattern):
                self.patterns.append((key, options))
            elif not isinstance(key, str):
                raise ImproperlyConfigured(f"task_routes: {key!r} is no task name, glob or compiled pattern.")
            elif "*" in key:
                self.patterns.append((_glob_pattern(key), options))
            else:
                self.names[key] = options

    def __call__(self, task_name: str, args: Any, kwargs: Any, options: Any) -> dict[str, Any] | None:
        exact = self.names.get(task_name)
        if exact is not None:
            return exact
        for pattern, found in self.patterns:
            if pattern.match(task_name):
                return found
        return None


def _rules_from(routes: Any) -> list[Rule]:
    if routes is None:
        return []
    if not isinstance(routes, (list, tuple)) or _is_pair(routes):
        routes = (routes,)
    if routes and all(_is_pair(entry) for entry in routes):
        return [_Map(routes)]
    return [_rule_from(route) for route in routes]


def _rule_from(route: Any) -> Rule:
    if isinstance(route, Mapping):
        return _Map(route.items())
    if _is_pair(route):
        return _Map([route])
    if isinstance(route, (list, tuple)) and all(_is_pair(entry) for entry in route):
        return _Map(route)
    if isinstance(route, str):
        return _dotted_rule(route)
    return _function_rule(route)


def _is_pair(entry: Any) -> bool:
    """`("shop.*", "shop")`, and not a list of two dotted paths."""
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        return False
    key, value = entry
    return isinstance(key, re.Pattern) or (
        isinstance(key, str) and (isinstance(value, Mapping) or (isinstance(entry, tuple) and isinstance(value, str)))
    )


def _function_rule(route: Any) -> Rule:
    asked = getattr(route, "route_for_task", None)
    if asked is not None:
        if isinstance(route, type):
            return _function_rule(route())
        return lambda name, args, kwargs, options: asked(name, args, kwargs)
    if not callable(route):
        raise ImproperlyConfigured(f"task_routes: {route!r} is no dict, function or dotted path.")
    return lambda name, args, kwargs, options: route(name, args, kwargs, options, task=None)


def _dotted_rule(path: str) -> Rule:
    """Imported when it is first asked, since it may live in a module that needs the app."""
    if "." not in path and ":" not in path:
        raise ImproperlyConfigured(
            f"task_routes: {path!r} is no dotted path of a function. To send every task there, set task_default_queue."
        )
    found: list[Rule] = []

    def ask(task_name: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        if not found:
            found.append(_function_rule(_imported(path)))
        return found[0](task_name, args, kwargs, options)

    return ask


def _imported(path: str) -> Any:
    from importlib import import_module

    module, separator, attribute = path.partition(":")
    if not separator:
        module, _, attribute = path.rpartition(".")
    try:
        found: Any = import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as problem:
        raise ImproperlyConfigured(f"task_routes: {path!r} cannot be imported: {problem}.") from problem
    return found


def _options_from(answer: Any, where: str) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"queue": answer}
    if not isinstance(answer, Mapping):
        if isinstance(getattr(answer, "name", None), str):
            return {"queue": answer.name}
        raise ImproperlyConfigured(f"{where} is {answer!r}. Give a queue's name, or a dict with queue, exchange, routing_key, priority.")
    unknown = answer.keys() - _ROUTING_OPTIONS - _HARMLESS_OPTIONS
    if unknown:
        raise ImproperlyConfigured(
            f"{where} has {', '.join(map(repr, sorted(unknown)))}. A route may name queue, exchange, routing_key and priority."
        )
    options = {name: answer[name] for name in _ROUTING_OPTIONS if answer.get(name) is not None}
    try:
        _checked_priority(options.get("priority", 0), where)
    except ValueError as problem:
        raise ImproperlyConfigured(str(problem)) from None
    return options


def _checked_priority(priority: Any, where: str) -> int:
    if type(priority) is not int or not 0 <= priority <= 9:
        raise ValueError(f"{where}: priority must be a whole number from 0 to 9 (9 runs first), not {priority!r}.")
    return priority


def _glob_pattern(glob: str) -> re.Pattern[str]:
    from fnmatch import translate

    return re.compile(translate(glob))


def _topic_pattern(key: str) -> re.Pattern[str]:
    """RabbitMQ's: `*` is one word, `#` any number of words, also none."""
    pattern = re.escape(key).replace(r"\*", r"[^.]+")
    pattern = pattern.replace(r"\.\#", r"(\..*)?").replace(r"\#\.", r"(.*\.)?").replace(r"\#", r".*")
    return re.compile(pattern)
