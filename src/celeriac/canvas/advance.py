"""How a workflow goes on when one of its tasks has ended: from an outcome to all that its settlement does beside it.

    SUCCESS            the next step of its chain; or, after the last one, its arrival at the join
    FAILURE, REVOKED   its arrival as failed, and the same end for the steps of its chain that will not come
    replaced           its replacement, in its place
    IGNORED            its arrival, with None

Pure: nothing is published or stored here, and what is made twice is the same twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Raw, Struct

from ..core import states
from ..core.errors import ChordError, Reject
from ..core.message import Arrival, Join, Message, Record
from ..core.serialize import decode_exception, encode_exception, encode_value
from ..tasks.callbacks import arrival, derived_ids, follow_ups, never_coming
from ..tasks.plan import Place, Plan
from ..tasks.signature import Signature, signature_of
from .chain import chain
from .group import as_one, last_of
from .workflow import Workflow

if TYPE_CHECKING:
    from ..tasks.producer import Producer
    from ..tasks.request import Request
    from ..tasks.run import Outcome
    from ..tasks.task import Task

_NOTHING = Raw(b"null")
_ADDED_AFTER = 1 << 20
"""Members that a member has added come after all that were there from the start, ordered by the one that added them."""
_HIGHEST = 1 << 52


class Advance(Struct, kw_only=True):
    """What a settlement does beside its message and its record."""

    messages: list[Message] = []
    joins: list[Join] = []
    enlarges: dict[str, int] = {}
    arrival: Arrival | None = None
    records: list[Record] = []


def advance(task: Task[..., Any], request: Request, outcome: Outcome, producer: Producer) -> Advance:
    """What follows this end of a task: links, the next step, the join.

    Raises: EncodeError, QueueNotFound and the like: what follows cannot be sent.
    """
    message = request.message
    plan = follow_ups(task, request, outcome, producer)
    found = Advance()
    match outcome.state:
        case states.SUCCESS:
            _write_additions(plan, request, found)
            if request.embed.get("chain"):
                _write_next(plan, request, outcome.value)
            elif message.join is not None:
                encoded = outcome.encoded if outcome.encoded is not None else encode_value(outcome.value, "result")
                found.arrival = arrival(message, encoded)
        case states.IGNORED if outcome.replaced_by is not None:
            _write_additions(plan, request, found)
            _write_replacement(plan, request, outcome.replaced_by)
        case states.IGNORED:
            found.arrival = arrival(message, _NOTHING)
        case states.FAILURE | states.REVOKED if outcome.error is not None:
            error = encode_exception(outcome.error)
            found.arrival = arrival(message, error, failed=True)
            found.records = never_coming(request.embed, outcome.state, error, outcome.traceback)
        case states.REJECTED if not outcome.requeue:
            error = encode_exception(Reject(outcome.reason))
            found.arrival = arrival(message, error, failed=True)
            found.records = never_coming(request.embed, states.FAILURE, error, None)
        case _:
            pass
    found.messages, found.joins = plan.messages, plan.joins
    return found


def chord_error(failed: Arrival) -> ChordError:
    """What the body of a chord ends with when this member has failed."""
    return ChordError(f"Dependency {failed.task_id} raised {decode_exception(failed.result)!r}")


# -- what is written into the plan ---------------------------------------------------------------------------------------------------


def _write_next(plan: Plan, request: Request, value: Any) -> None:
    chained = [signature_of(step) for step in request.embed["chain"]]
    fresh_id = derived_ids(request.id or "", "chain")
    next = chained.pop()
    if isinstance(next._expanded(), Workflow) and chained:
        next, chained = chain(next, *reversed(chained)), []
    place = _place_of(request.message)
    normal = next._normal(fresh_id)
    if place.join is not None:
        normal = as_one(normal, fresh_id)
    normal._write(plan, _with_chain(place, chained), (value,))
    _remember(request, normal)


def _write_replacement(plan: Plan, request: Request, replacement: Signature[Any]) -> None:
    """The replacement stands where the task stood: its last task has the task's id, its links, and all that comes after it."""
    fresh_id = derived_ids(request.id or "", "replace")
    normal = as_one(replacement._normal(fresh_id), fresh_id)
    last_of(normal).options["task_id"] = request.id
    for callback in request.embed.get("callbacks") or ():
        last_of(normal).link(callback)
    for errback in request.embed.get("errbacks") or ():
        normal.link_error(signature_of(errback))
    chained = [signature_of(step) for step in request.embed.get("chain") or ()]
    if chained and isinstance(normal, Workflow):
        normal, chained = chain(normal, *reversed(chained))._normal(fresh_id), []
    normal._set_all({"replaced_task_nesting": request.message.replaced_task_nesting + 1})
    normal._write(plan, _with_chain(_place_of(request.message), chained))


def _write_additions(plan: Plan, request: Request, found: Advance) -> None:
    """What `add_to_chord` was given: further members of the join."""
    join = request.message.join
    if not request.additions or join is None:
        return
    for number, addition in enumerate(request.additions):
        index = (request.message.join_index + 1) * _ADDED_AFTER + number
        place = Place(join=join, join_index=index % _HIGHEST, group=request.message.group, group_index=index % _HIGHEST)
        addition._write(plan, place)
    found.enlarges = {join: len(request.additions)}


def _place_of(message: Message) -> Place:
    return Place(join=message.join, join_index=message.join_index, group=message.group, group_index=message.group_index)


def _with_chain(place: Place, chained: Sequence[Signature[Any]]) -> Place:
    from msgspec import structs

    return structs.replace(place, chain=tuple(chained)) if chained else place


def _remember(request: Request, normal: Signature[Any]) -> None:
    if request.running is None or request.running.trail:
        request.children.append(normal._result())
