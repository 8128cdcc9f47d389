"""feed: a group that is too large to be made at once. It takes its members from a generator, and no faster than they are worked off.

generator ──▶ batches of messages ──▶ queue   waits while more than `window` are ready there
                                       │
                                      join    does not know its size before the generator is empty (`seal`); then the body comes with the last member
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.ids import new_id
from ..core.message import Arrival, Join, Message
from ..core.serialize import encode_exception
from ..tasks.plan import BATCH, Place, Plan, publish
from ..tasks.registry import find_current_app
from ..tasks.request import current_request
from ..tasks.signature import signature_of

if TYPE_CHECKING:
    from ..tasks.result import AsyncResult

__all__ = ["Fed", "feed"]

_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1


class Fed:
    """What `feed` has sent."""

    def __init__(self, id: str, app: Any, result: AsyncResult[Any] | None) -> None:
        self.id = id
        """Of the group, and of its join."""
        self.app = app
        self.result = result
        """Of the body; None without one."""
        self.sent = 0

    def ended(self) -> int | None:
        """How many members have ended so far; None without a body, and when its body has come."""
        state = self.app.joins.joins([self.id]).get(self.id)
        return None if state is None else int(state.arrived)


def feed(
    members: Iterable[Any],
    body: Any = None,
    *,
    window: int = 10_000,
    app: Any = None,
    on_progress: Callable[[int], object] | None = None,
) -> Fed:
    """Sends each signature that `members` yields, while at most about `window` messages are ready in the queues they go to. Returns when all are sent.

    With `body`, a chord: it comes when all have ended. (A body that is `.si(…)` takes no results, and can follow a million members.) `on_progress(sent)` is called after each batch.
    When `members` raises, what was sent goes on, the body ends with `ChordError`, and the exception is raised.
    """
    app = app or find_current_app()
    parent = current_request()
    batch = max(1, min(BATCH, window // 4))
    plan = Plan(app.producer, parent=parent, checks=True)
    fed = Fed(new_id(), app, None)
    if body is not None:
        normal = signature_of(body, app=app)._normal(new_id)
        fed.result = normal._result()
        then = plan.part()
        normal._write(then, Place(joined=fed.id))
        plan.joins = [*then.joins, Join(id=fed.id, then=then.messages)]
        _open(app, plan)
    join = fed.id if body is not None else None
    number = -1
    try:
        for number, member in enumerate(members):
            single = signature_of(member, app=app)._single(new_id)
            single._write(plan, Place(join=join, join_index=number, group=fed.id, group_index=number))
            if len(plan.messages) >= batch:
                _send(app, plan, window, on_progress, fed, number + 1)
        _send(app, plan, window, on_progress, fed, number + 1)
    except BaseException as error:
        if join is not None:
            lost = Arrival(join=join, index=fed.sent, task_id=fed.id, failed=True, result=encode_exception(error))
            _publish(app, app.joins.arrive([lost], seals={join: fed.sent + 1}))
        raise
    if join is not None:
        if app.broker.capabilities.joins:
            app.joins.seal(join, fed.sent)
        else:
            _publish(app, app.joins.arrive([], seals={join: fed.sent}))
    return fed


def _open(app: Any, plan: Plan) -> None:
    joins, plan.joins = plan.joins, []
    _publish(app, app.joins.arrive([], opens=joins))


def _send(app: Any, plan: Plan, window: int, on_progress: Callable[[int], object] | None, fed: Fed, number: int) -> None:
    if not plan.messages:
        return
    queues = sorted({message.queue for message in plan.messages})
    pause = _FIRST_PAUSE_SECONDS
    while sum(depth.ready for depth in app.broker.depth(queues).values()) + len(plan.messages) > max(window, len(plan.messages)):
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    publish(app, plan)
    fed.sent = number
    if on_progress is not None:
        on_progress(fed.sent)


def _publish(app: Any, messages: Sequence[Message]) -> None:
    if messages:
        app.producer.publish(messages)
