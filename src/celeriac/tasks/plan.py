"""Plan: the messages and joins that a call of a workflow comes to. Building one publishes nothing, and asks no engine.

A signature writes itself into a plan at a `Place`: the join it belongs to, what comes after it. Those of several tasks (`canvas`) write their parts, each at its own place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, structs

from ..core.errors import EnqueueError
from ..core.ids import new_id
from ..core.message import Join, Message
from .producer import Producer

if TYPE_CHECKING:
    from ..contracts.joins import Joins
    from .request import Request

BATCH = 1000
"""So many messages at most are published in one step. What is larger goes in several."""


class Place(Struct, frozen=True, kw_only=True):
    """Where in a workflow a call stands."""

    join: str | None = None
    """The join that its end, or the end of all that comes after it, arrives at."""
    join_index: int = 0
    joined: str | None = None
    """The join that it waits for."""
    group: str | None = None
    group_index: int | None = None
    chain: tuple[Mapping[str, Any], ...] = ()
    """What comes after it, in Celery's order: the last of these is next."""


NOWHERE = Place()


class Plan:
    """Collects messages and joins. With `flush`, whoever publishes gets each `BATCH` of them as soon as it is full, so that a large workflow needs little memory."""

    def __init__(
        self,
        producer: Producer,
        *,
        parent: Request | None = None,
        fresh_id: Callable[[], str] = new_id,
        checks: bool = False,
        flush: Callable[[Plan], None] | None = None,
    ) -> None:
        """`parent`: the run that makes the call. `checks`: refuse arguments that a task does not take. `fresh_id` names what has no name yet."""
        self.producer = producer
        self.parent = parent
        self.fresh_id = fresh_id
        self.checks = checks
        self.flush = flush
        self.published = 0
        """How many messages of it have been published already."""
        self.root_id: str | None = None
        self.options: dict[str, Any] = {}
        """Options of every message that is added."""
        self.messages: list[Message] = []
        self.joins: list[Join] = []

    def part(self) -> Plan:
        """A plan of its own with the same circumstances: for what a join publishes later, or for what may turn out impossible."""
        part = Plan(self.producer, parent=self.parent, fresh_id=self.fresh_id)
        part.root_id, part.options = self.root_id, self.options
        return part

    def include(self, part: Plan) -> None:
        """Takes over what a part has."""
        self.messages += part.messages
        self.joins += part.joins

    def queue_of(self, signature: Mapping[str, Any]) -> str:
        """The queue that a call of it goes to."""
        return queue_of(self.producer, signature)

    def add(self, signature: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], place: Place) -> Message:
        """One call at its place: `args` and `kwargs` go before its own, unless it is immutable.

        Raises: EncodeError, ValueError: an argument or an option cannot travel.
                TypeError: it does not take these arguments.
        """
        producer = self.producer
        name: str = signature["task"]
        immutable = bool(signature.get("immutable"))
        own_args, own_kwargs = tuple(signature.get("args") or ()), signature.get("kwargs") or {}
        if not immutable:
            own_args, own_kwargs = (*args, *own_args), {**own_kwargs, **kwargs}
        given = signature.get("options")
        task = producer.find_task(name)
        defaults = task.defaults(producer.settings) if task is not None else None
        if not given and not place.chain and not self.options and defaults is not None and not defaults.has_shadow_name:
            if self.checks and place.joined is None and defaults.check is not None:
                defaults.check(*own_args, **own_kwargs)
            id = self.fresh_id()
            if self.parent is None and self.root_id is None:
                self.root_id = id
            message = producer.member(
                name,
                own_args,
                own_kwargs,
                defaults,
                self.parent,
                id=id,
                root_id=self.root_id if self.parent is None else self.parent.root_id,
                group=place.group,
                group_index=place.group_index,
                join=place.join,
                join_index=place.join_index,
                joined=place.joined,
                immutable=immutable and place.joined is not None,
            )
            return self._added(message)
        options = dict(given or {})
        options.pop("chord", None)
        if self.options:
            options |= self.options
        if place.chain:
            options["chain"] = list(place.chain)
        if place.group is not None:
            options["group_id"], options["group_index"] = place.group, place.group_index
        if "task_id" not in options:
            options["task_id"] = self.fresh_id()
        if self.parent is None and not options.get("root_id"):
            self.root_id = options["root_id"] = self.root_id or options["task_id"]
        if task is not None and defaults is not None:
            if self.checks and place.joined is None and defaults.check is not None:
                defaults.check(*own_args, **own_kwargs)
            if defaults.has_shadow_name and not options.get("shadow"):
                options["shadow"] = task.shadow_name(own_args, own_kwargs, options)
        message = producer.message(name, own_args, own_kwargs, task=task, options=options, parent=self.parent)
        if place.join is not None or place.joined is not None:
            message = structs.replace(
                message,
                join=place.join,
                join_index=place.join_index,
                joined=place.joined,
                immutable=immutable and place.joined is not None,
            )
        return self._added(message)

    def _added(self, message: Message) -> Message:
        self.messages.append(message)
        if self.flush is not None and len(self.messages) >= BATCH:
            self.flush(self)
        return message


def queue_of(producer: Producer, signature: Mapping[str, Any]) -> str:
    """The queue that a call of it goes to."""
    task = producer.find_task(signature["task"])
    return producer.message(signature["task"], (), {}, task=task, options=dict(signature.get("options") or {})).queue


class Engines(Protocol):
    """What publishing a plan needs of an app."""

    @property
    def producer(self) -> Producer: ...
    @property
    def joins(self) -> Joins: ...


def publish(app: Engines, plan: Plan, *, retry: bool | None = None, retry_policy: Mapping[str, Any] | None = None) -> None:
    """→ the engine, and the plan is empty. Members and their joins in one step, where the broker keeps joins; else the joins first.

    Raises: EnqueueError: nothing of what the plan held is in any queue; it says how many were published before.
    """
    messages, joins = plan.messages, plan.joins
    plan.messages, plan.joins = [], []
    if not messages and not joins:
        return
    producer = app.producer
    if joins and not producer.broker.capabilities.joins:
        messages = [*messages, *app.joins.arrive([], opens=joins)]
        joins = []
    try:
        producer.publish(messages, joins=joins, retry=retry, retry_policy=retry_policy)
    except EnqueueError as problem:
        if not plan.published:
            raise
        text = f"Of this workflow, the first {plan.published} messages have been sent, and the next {len(messages)} could not be. {problem}"
        raise EnqueueError(text, task_name=problem.task_name, task_id=problem.task_id, unsure=problem.unsure) from problem
    plan.published += len(messages)
