"""The engine of a RabbitMQ server (3.10 or newer) or cluster. A Broker: results, and what chords count, live in another engine.

storage    messages as Celery writes them (interop/celery.py), persistent, in the queue of their name: a quorum queue, unless it exists already as another.
           Beside it `….celeriac.returned`, for what was given back (read first), and `….celeriac.dead`. Messages that are not due wait in 28 queues, one for
           each power of two of 50 ms (rabbitmq_sender.py). Pauses, revokes and names of queues are notes in a stream, registrations in another
a crash    of a process or a worker loses nothing; of the server: nothing that was confirmed, and `publish` waits for the confirmation
order      as RabbitMQ gives: oldest first; by priority in a queue of `task_queues` that has `max_priority` (a classic queue). What was given back comes before
waiting    RabbitMQ pushes; nobody polls
leases     RabbitMQ's: a message belongs to the connection that got it, which is the supervisor's (rabbitmq_intake.py, and rabbitmq_desk.py for its processes). It ends with the connection, at once when
           the worker dies, after two heartbeats (each half of the lease that it is registered with) when its host does. A worker that lost its connection goes on, takes back what it gets again, and is refused the rest
repeats    RabbitMQ knows no ids. So a publication whose confirmation was lost is not repeated, but reported; and a message that may be a second copy says so
           (`Delivery.repeated`), and whoever has the results looks there before it runs
clocks     delays are measured by the server, `expires` by the worker's clock
atomic     each publication, each acknowledgement. A list is not: when the connection breaks in its middle, a part of it may be there. A settlement publishes what
           follows first and acknowledges then
cannot     see, find or remove one message among those that wait, or say what other workers hold, or how many of a queue wait for their time
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import msgspec

from ..contracts.broker import Capabilities
from ..contracts.inspect import Depth, Waiting
from ..contracts.mailbox import Letter, Node
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import DecodeError, EngineUnavailable, ImproperlyConfigured, NodeLost
from ..core.message import Delivery, Holder, Join, Message, Revocation, Settlement, Verdict
from ..interop.celery import body_of, content_encoding_of, headers_of, message_of
from . import rabbitmq_wire as wire
from .rabbitmq_desk import Desk
from .rabbitmq_held import Held, addressed, delivery, readdressed, relabelled
from .rabbitmq_intake import Intake
from .rabbitmq_replies import Replies
from .rabbitmq_sender import LOCAL_SECONDS, Publication, Sender, Topology, is_away

if TYPE_CHECKING:
    from ..contracts.broker import Broker
    from ..contracts.results import ResultBackend

NODES_SECONDS = 120.0
"""How old a registration may be that is still read; a heartbeat repeats it."""
SIGN_OFF_SECONDS = 2.0
"""A worker that stops waits no longer for a server that does not answer: others notice that it is gone."""
SURVEY_SECONDS = 4.0
"""How long a supervisor waits to be told of the others …"""
SURVEY_AGAIN_SECONDS = 30.0
"""… and when it asks again, after it has not been told."""
_BROWSED = 10_000
"""So many dead letters of a queue are looked at."""

_encode = msgspec.json.Encoder().encode

_engines: WeakSet[RabbitMQEngine] = WeakSet()
_options = frozenset({"queue_type", "name_prefix", "heartbeat", "custody_seconds", "ssl_context", "connections", "replies"})
_of_others = frozenset(
    {"visibility_timeout", "confirm_publish", "max_retries", "interval_start", "interval_step", "interval_max", "login_method"}
)


class _Wish(NamedTuple):
    """What somebody wants to have next."""

    queues: Sequence[str]
    limit: int
    holder: Holder
    wait_seconds: float


class RabbitMQEngine:
    """The engine of `amqp://`, `amqps://` and `pyamqp://`.

    Options: `queue_type` ("quorum" or "classic", of queues that do not exist and of which `task_queues` says nothing), `name_prefix` (before the names of all
    queues and exchanges), `heartbeat` (seconds), `custody_seconds` (less than half of the server's `consumer_timeout`), `ssl_context`, `connections` (how many a process may publish over).
    """

    capabilities = Capabilities(
        engine="rabbitmq",
        priorities=False,
        atomic_results=False,
        joins=False,
        ids=False,
        counts=False,
        own_timers=True,
        connection_leases=True,
        forgets=True,
    )

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        result_expires: float | None = None,
        revokes_expire_seconds: float = 10800,
        task_queues: Iterable[Any] | None = None,
        replies: bool = False,
        **transport_options: Any,
    ) -> None:
        unknown = transport_options.keys() - _options - _of_others
        if unknown:
            raise ImproperlyConfigured(f"The RabbitMQ engine has no option {min(unknown)!r}. There are {', '.join(sorted(_options))}.")
        self.url = url
        self._clock = clock
        self._revokes_expire_seconds = revokes_expire_seconds
        addresses = wire.Address.parse(url)
        given = {**addresses[0].options, **transport_options}
        queue_type = str(given.get("queue_type", "quorum"))
        if queue_type not in ("quorum", "classic"):
            raise ImproperlyConfigured(f"queue_type is 'quorum' or 'classic', not {queue_type!r}.")
        self._topology = Topology(prefix=str(given.get("name_prefix", "")), queue_type=queue_type, queues=task_queues or ())
        self._sender = Sender(addresses, self._topology, tls=given.get("ssl_context"), connections=int(given.get("connections", 4)))
        self._heartbeat_seconds = int(given.get("heartbeat", 10))
        self._custody_seconds = float(given.get("custody_seconds", 30.0))
        self._intake = self._new_intake(self._heartbeat_seconds)
        self._replies: Replies | None = Replies(self._sender, expires_seconds=result_expires) if replies else None
        self._desks = threading.local()
        self._survey_at = 0.0
        self._latest = 0.0
        """When the last message was published: of two that are published in one moment, the first has waited longer."""
        self._begun: dict[tuple[str, int], None] = {}
        """Settlements (id and token) whose follow-ups may have been published …"""
        self._followed_up: dict[tuple[str, int], None] = {}
        """… and those whose follow-ups are known to be; though the acknowledgement has failed yet."""
        self._needs: dict[str, tuple[tuple[str, str], ...]] = {}
        _engines.add(self)

    def _new_intake(self, heartbeat_seconds: int) -> Intake:
        return Intake(
            self._sender,
            self._clock,
            heartbeat_seconds=heartbeat_seconds,
            custody_seconds=self._custody_seconds,
            revokes_expire_seconds=self._revokes_expire_seconds,
        )

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, joins: Sequence[Join] = (), timeout_seconds: float | None = None) -> None:
        if joins:
            raise NotImplementedError("RabbitMQ cannot count joins; open them where the results are (`app.joins`).")
        deadline = time.monotonic() + (LOCAL_SECONDS if timeout_seconds is None else timeout_seconds)
        now = self._clock.time()
        publications = [self._publication(message, now) for message in messages]
        if len(publications) > 1:
            seen: set[str] = set()
            publications = [
                one
                for one, message in zip(publications, messages, strict=True)
                if not (message.id in seen or seen.add(message.id))  # type: ignore[func-returns-value]
            ]
        self._sender.publish(publications, deadline)

    def _publication(
        self, message: Message, now: float, *, counts: Sequence[int] = (), again: bool = False, delay_seconds: float = 0.0
    ) -> Publication:
        headers = headers_of(message)
        wait = _seconds_to_wait(message, now)
        if wait <= 0.0:
            now = self._latest = now if now > self._latest + 1e-6 or now < self._latest - 1.0 else self._latest + 1e-6
        headers["celeriac-since"] = now + max(0.0, wait)
        if counts:
            headers["celeriac-counts"] = list(counts)
        if again:
            headers["celeriac-again"] = True
        reply_to = message.reply_to or (self._replies.address() if self._replies is not None else "")
        try:
            properties = wire.properties(
                headers,
                content_type=message.content_type,
                content_encoding=content_encoding_of(message),
                priority=message.priority,
                correlation_id=message.id,
                reply_to=reply_to,
            )
        except ImproperlyConfigured:
            properties = wire.properties(
                {**headers, "celeriac-reply-to": message.reply_to}, content_type=message.content_type[:200],
                content_encoding=content_encoding_of(message), priority=message.priority, correlation_id=message.id,
            )  # fmt: skip
        body = body_of(message)
        queue = message.queue
        if wait > 0.0:
            publication = addressed(self._topology, "queue", queue, self._topology.queue(queue), properties, body, wait)
            if self._replies is not None:
                publication = publication._replace(needs=(*publication.needs, ("replies", self._replies.address())))
            return publication
        exchange, key = self._topology.route(queue, message.exchange, message.routing_key)
        needs = self._needs.get(queue)
        if needs is None:
            needs = self._needs[queue] = (("queue", queue),)
        if self._replies is not None:
            needs = (*needs, ("replies", self._replies.address()))
        return Publication(exchange, key, properties, body, needs)

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder, wait_seconds: float = 0.0) -> list[Delivery]:
        if wait_seconds > 0.0 and self._place_of(holder.node) is not None and not self._intake.wait(queues, wait_seconds):
            return []
        return self._exchange((), queues, limit, holder, wait_seconds)[1]

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        refused: list[str] = []
        nodes = {settlement.lease.holder.node for settlement in settlements if settlement.lease is not None}
        if not nodes:
            self._follow_up(settlements, {})
            self._settled(settlements)
        for node in nodes:
            mine = [one for one in settlements if one.lease is None or one.lease.holder.node == node]
            settlements = [one for one in settlements if one not in mine]
            try:
                refused += self._settle(node, mine)[0]
            except NodeLost:  # nothing is held any more under that name
                refused += [one.id for one in mine if one.lease is not None]
                self._follow_up([one for one in mine if one.lease is None], {})
        return refused

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        return self._exchange(settlements, queues, limit, holder)

    def _exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], limit: int, holder: Holder, wait_seconds: float = 0.0
    ) -> tuple[list[str], list[Delivery]]:
        place = self._place_of(holder.node)
        if place is not None and holder.node not in place.nodes:
            raise NodeLost(holder.node)
        wish = _Wish(queues, limit, holder, wait_seconds)
        refused, held = self._settle(holder.node, settlements, wish)
        if not held:
            return refused, []
        now = self._clock.time()
        return refused, [delivery(one, self._decode, now) for one in held]

    def _settle(self, node: str, settlements: Sequence[Settlement], wish: _Wish | None = None) -> tuple[list[str], list[Held]]:
        try:
            return self._settle_and_take(node, settlements, wish)
        except EngineUnavailable:
            self._leave_desk()
            raise

    def _settle_and_take(self, node: str, settlements: Sequence[Settlement], wish: _Wish | None) -> tuple[list[str], list[Held]]:
        """Publishes what follows, then acknowledges, then takes what is next."""
        place = self._place_of(node)
        desk = self._desk(node) if place is None else None
        settlements, refused = self._once_each(settlements)
        leases = [
            (one.id, one.lease.token, one.lease.holder.node, one.lease.holder.process) for one in settlements if one.lease is not None
        ]
        early = any(one.early for one in settlements)
        speaking = any(one.follow_ups or one.verdict is not Verdict.DONE for one in settlements)
        if speaking:
            with suppress(NodeLost):
                stale = set(desk.stale(leases) if desk is not None else place.stale(leases) if place is not None else ())
                if stale:
                    refused += stale
                    settlements = [one for one in settlements if one.lease is None or one.id not in stale]
                    leases = [lease for lease in leases if lease[0] not in stale]
            held = self._held_by_id(node, desk, place) if any(one.verdict is not Verdict.DONE for one in settlements) else {}
            self._follow_up(settlements, held)
        if desk is not None:
            if wish is not None:
                answered, taken = desk.exchange(wish.holder, leases, wish.queues, wish.limit, wish.wait_seconds)
                self._settled(settlements)
                return [*refused, *answered], taken
            if leases:
                refused += desk.leave(leases) if early else desk.settle(leases)
            self._settled(settlements)
            return refused, []
        assert place is not None
        refused += place.leave(leases) if early else place.acknowledge(leases)
        self._settled(settlements)
        return refused, place.reserve(wish.queues, wish.limit, wish.holder) if wish is not None else []

    def _once_each(self, settlements: Sequence[Settlement]) -> tuple[list[Settlement], list[str]]:
        kept: dict[str, Settlement] = {}
        refused = []
        for one in settlements:
            if one.lease is not None and one.id in kept:
                refused.append(one.id)
            else:
                kept[one.id if one.lease is not None else f"{one.id} {len(kept)}"] = one
        return list(kept.values()), refused

    def _held_by_id(self, node: str, desk: Desk | None, place: Intake | None) -> dict[str, Held]:
        held = desk.held(node, None) if desk is not None else place.holdings(node) if place is not None else []
        return {one.id: one for one in held}

    def _follow_up(self, settlements: Sequence[Settlement], held: dict[str, Held]) -> None:
        """All that settlements publish, confirmed."""
        now = self._clock.time()
        publications: list[Publication] = []
        keys = []
        for one in settlements:
            key = (one.id, one.lease.token if one.lease is not None else 0)
            keys.append(key)
            if key in self._followed_up:
                continue
            again = key in self._begun or key[1] > 1
            mine = held.get(one.id)
            if mine is not None and one.lease is not None:
                second = key in self._begun or mine.again or mine.crashes + mine.interruptions > 0
                publications += self._what_becomes(one, mine, now, again=second)
            publications += [self._publication(self._inherited(message, one.id), now, again=again) for message in one.follow_ups]
        if not publications:
            return
        self._begun.update(dict.fromkeys(keys))
        self._sender.publish(publications, time.monotonic() + LOCAL_SECONDS)
        self._followed_up.update(dict.fromkeys(keys))

    def _inherited(self, message: Message, parent_id: str) -> Message:
        """Who waits for what follows a task is who called it."""
        if self._replies is None or message.reply_to:
            return message
        return msgspec.structs.replace(message, reply_to=self._replies.caller(parent_id))

    def _settled(self, settlements: Sequence[Settlement]) -> None:
        """Their follow-ups need not be remembered any more."""
        if self._begun:
            for one in settlements:
                key = (one.id, one.lease.token if one.lease is not None else 0)
                self._begun.pop(key, None)
                self._followed_up.pop(key, None)

    def _what_becomes(self, one: Settlement, held: Held, now: float, *, again: bool) -> list[Publication]:
        match one.verdict:
            case Verdict.RETRY:
                if one.message is None:
                    held = msgspec.structs.replace(held, crashes=0, interruptions=0)
                    return [readdressed(held, self._topology)]
                return [self._publication(one.message, now, counts=[0, 0, held.token], again=again)]
            case Verdict.RELEASED | Verdict.CRASHED:
                crashed = one.verdict is Verdict.CRASHED
                if one.message is not None:
                    fresh = self._publication(msgspec.structs.replace(one.message), now)
                    held = msgspec.structs.replace(held, properties=fresh.properties, body=fresh.body)
                counts = [held.crashes + crashed, held.interruptions + (not crashed), held.token]
                delay = 0.0 if crashed else one.delay_seconds
                properties = relabelled(held.properties, {"celeriac-counts": counts, "celeriac-since": held.since})
                return [
                    addressed(self._topology, "returned", held.queue, self._topology.returned(held.queue), properties, held.body, delay)
                ]
            case Verdict.DEAD:
                counts = [held.crashes, held.interruptions, held.token]
                death = {
                    "celeriac-counts": counts,
                    "celeriac-since": held.since,
                    "celeriac-died": now,
                    "celeriac-reason": one.reason,
                    "id": held.id,
                }
                dead = self._topology.dead(held.queue)
                return [Publication("", dead, relabelled(held.properties, death), held.body, (("dead", held.queue),))]
            case _:
                return []

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        place = self._place_of(node)
        try:
            held = place.holdings(node, process) if place is not None else self._desk(node).held(node, process)
        except NodeLost:
            return []
        now = self._clock.time()
        return [delivery(one, self._decode, now) for one in held]

    def lost(self, node: str, process: int) -> list[str]:
        place = self._place_of(node)
        return place.lost(node, process) if place is not None else []

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        if not revocations:
            return {}
        mine = {id: held for engine in _here(self) for id, held in engine._intake.ledger.held.items()}
        for terminate in dict.fromkeys(one.signal if one.terminate else "" for one in revocations):
            ids = [one.id for one in revocations if (one.signal if one.terminate else "") == terminate]
            for start in range(0, len(ids), 500):
                self._note({"revoke": ids[start : start + 500], "at": self._clock.time(), "terminate": terminate})
        return {one.id: "running" if one.id in mine else "unknown" for one in revocations}

    # -- nodes and their leases ----------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        beat = min(self._heartbeat_seconds, max(1, round(lease_seconds / 2)))
        self._intake.register(node, self._clock.monotonic() + lease_seconds, beat)
        deadline = time.monotonic() + LOCAL_SECONDS
        with self._sender.link(deadline) as link:
            link.declare("delays", "", deadline)
        self._sender.note("nodes", self._of_node(node, lease_seconds), deadline)

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        place = self._place_of(node)
        known = place.nodes.get(node) if place is not None else None
        if place is None or known is None:
            return False
        return place.renew(node, self._clock.monotonic() + lease_seconds, self._of_node(known[0], lease_seconds))

    def unregister(self, node: str) -> None:
        place = self._place_of(node)
        if place is not None:
            place.give_up(node, crashed=False)
        self._note_gone(node, SIGN_OFF_SECONDS)

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        now = self._clock.monotonic()
        ids: list[str] = []
        for engine in _here(self):
            place = engine._intake
            silent = [id for id, (_, until) in place.nodes.items() if until <= now]
            unregistered = {
                held.holder.node for held in place.ledger.held.values() if held.holder is not None and held.holder.node not in place.nodes
            }
            for node in dict.fromkeys([*(one for one in nodes if one in place.nodes), *silent, *unregistered]):
                ids += place.give_up(node, crashed=True)
                self._note_gone(node)
        for node in nodes:
            if self._place_of(node) is None:  # it may live: its worker hears of it, and lets go of all
                self._note({"gone": node})
                self._note_gone(node)
        for other in self.nodes():  # RabbitMQ has taken back what it held, or is about to
            if other.lease_left_seconds < 0.0:
                self._note_gone(other.id)
        return ids

    def _of_node(self, node: Node, lease_seconds: float) -> dict[str, Any]:
        return {"node": msgspec.to_builtins(node), "until": self._clock.time() + lease_seconds}

    def _note_gone(self, node: str, seconds: float = LOCAL_SECONDS) -> None:
        self._sender.note("nodes", {"gone": node}, time.monotonic() + seconds)

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        return self._intake.wait(queues, timeout_seconds)

    def replies(self) -> ResultBackend:
        """The results that come back to this process by message (`rpc://`)."""
        if self._replies is None:
            self._replies = Replies(self._sender, expires_seconds=None)
        return self._replies

    def close(self) -> None:
        self._leave_desk()
        self._intake.close()
        self._sender.close()

    # -- letters -------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        notes = (
            self._survey()
            if self._intake.nodes
            else self._sender.read_notes("nodes", time.time() - NODES_SECONDS, time.monotonic() + LOCAL_SECONDS)
        )
        now = self._clock.time()
        found: dict[str, Node] = {}
        for note in notes:
            if "gone" in note:
                found.pop(note["gone"], None)
            else:
                node = msgspec.convert(note["node"], Node)
                found[node.id] = msgspec.structs.replace(node, lease_left_seconds=note["until"] - now)
        for engine in _here(self):
            for id, (_, until) in engine._intake.nodes.items():
                if id in found:
                    found[id] = msgspec.structs.replace(found[id], lease_left_seconds=until - self._clock.monotonic())
        return list(found.values())

    def _survey(self) -> list[dict[str, Any]]:
        """What a supervisor reads of the others. When the stream is away, it serves its processes without it, and knows only itself."""
        mine = [self._of_node(node, until - self._clock.monotonic()) for node, until in self._intake.nodes.values()]
        if time.monotonic() < self._survey_at:
            return mine
        try:
            return self._sender.read_notes("nodes", time.time() - NODES_SECONDS, time.monotonic() + SURVEY_SECONDS)
        except EngineUnavailable as problem:
            if not (is_away(problem) and self._intake.lines.lives()):
                raise
            self._survey_at = time.monotonic() + SURVEY_AGAIN_SECONDS
            return mine

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        body = _encode([self._clock.time(), letter])
        publications = [
            Publication("", self._topology.name("letters", address), _LETTER, body, (("letters", address),)) for address in addresses
        ]
        deadline = time.monotonic() + LOCAL_SECONDS
        with self._sender.link(deadline) as link:
            link.declared -= {("letters", address) for address in addresses}  # a mailbox that nobody uses expires
            link.publish(publications, deadline)

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        return self._intake.collect(address, timeout_seconds)

    # -- what people see -----------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock.time()

    def queues(self) -> list[str]:
        paused, names = self._notes()
        return sorted(name for name, depth in self._depths(names, paused).items() if _is_known_of(depth))

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        paused, names = self._notes()
        depths = self._depths(names if queues is None else list(queues), paused)
        return depths if queues is not None else {name: depth for name, depth in depths.items() if _is_known_of(depth)}

    def _notes(self) -> tuple[dict[str, str], list[str]]:
        """Who paused which queue; and the names of all queues that somebody has declared."""
        deadline = time.monotonic() + LOCAL_SECONDS
        notes = self._sender.read_notes("notes", None, deadline)
        paused: dict[str, str] = {}
        names: dict[str, None] = dict.fromkeys(self._topology.queues)
        for note in notes:
            if "queue" in note:
                names[note["queue"]] = None
            for queue in note.get("pause", ()):
                paused[queue] = note["by"]
            for queue in note.get("resume", ()):
                paused.pop(queue, None)
        names.update(dict.fromkeys(paused))
        return paused, list(names)

    def _depths(self, names: Sequence[str], paused: dict[str, str]) -> dict[str, Depth]:
        deadline = time.monotonic() + LOCAL_SECONDS
        depths = {}
        places = [engine._intake for engine in _here(self)]
        knows = any(place.nodes for place in places)
        with self._sender.link(deadline) as link:
            for name in dict.fromkeys(names):
                ready = _messages(link, self._topology.queue(name), deadline) + _messages(link, self._topology.returned(name), deadline)
                dead = _messages(link, self._topology.dead(name), deadline)
                leased = sum(held.queue == name and not held.lost for place in places for held in place.ledger.held.values())
                ready += sum(len(place.ledger.buffer.get(name) or ()) for place in places)
                depths[name] = Depth(ready=ready, scheduled=None, leased=leased if knows else None, dead=dead, paused_by=paused.get(name))
        return depths

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        if state == "dead":
            return [waiting for _, waiting in self._browse(queue)][::-1][offset : offset + limit]
        if state == "leased":
            held = [one for engine in _here(self) for one in engine._intake.ledger.held.values() if one.queue == queue and not one.lost]
            return [self._waiting(one) for one in held][offset : offset + limit]
        return []

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        found: dict[str, Waiting] = {}
        wanted = set(ids)
        if not wanted:
            return found
        for engine in _here(self):
            for held in engine._intake.ledger.held.values():
                if held.id in wanted and not held.lost:
                    found[held.id] = self._waiting(held)
        if wanted - found.keys():
            for queue in self._notes()[1]:
                for _, waiting in self._browse(queue):
                    if waiting.id in wanted:
                        found.setdefault(waiting.id, waiting)
        return found

    def revoked(self) -> list[str]:
        deadline = time.monotonic() + LOCAL_SECONDS
        notes = self._sender.read_notes("notes", None, deadline)
        horizon = self._clock.time() - self._revokes_expire_seconds
        return list(dict.fromkeys(id for note in notes if "revoke" in note and note["at"] > horizon for id in note["revoke"]))

    def purge(self, queues: Sequence[str]) -> int:
        deadline = time.monotonic() + LOCAL_SECONDS
        count = 0
        with self._sender.link(deadline) as link:
            for queue in queues:
                for name in (self._topology.queue(queue), self._topology.returned(queue)):
                    with suppress(wire.Refused):
                        answer = link.risk(wire.purge_queue(2, name), wire.QUEUE_PURGE_OK, deadline)
                        count += int.from_bytes(answer.arguments[:4], "big")
        return count

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        self._note({"pause": list(queues), "by": by})

    def resume(self, queues: Sequence[str]) -> None:
        self._note({"resume": list(queues)})

    def _note(self, note: dict[str, Any]) -> None:
        self._sender.note("notes", note, time.monotonic() + LOCAL_SECONDS)

    def replay(self, ids: Sequence[str]) -> list[str]:
        return self._take_dead(ids, self._replayed)

    def discard(self, ids: Sequence[str]) -> list[str]:
        return self._take_dead(ids, None)

    def _replayed(self, held: Held) -> Publication:
        properties = relabelled(held.properties, {"celeriac-again": None})  # whatever it may have been a copy of is done with
        held = msgspec.structs.replace(held, properties=properties, crashes=0, interruptions=0, since=self._clock.time())
        return readdressed(held, self._topology)

    def _take_dead(self, ids: Sequence[str], action: Any) -> list[str]:
        wanted = set(ids)
        done: list[str] = []
        if wanted:
            for queue in self._notes()[1]:
                done += self._sift_dead(queue, wanted, action)
        return [id for id in dict.fromkeys(ids) if id in done]

    # -- dead letters: read by taking all and giving back, one reader at a time ------------------------------------

    def _browse(self, queue: str) -> list[tuple[Held, Waiting]]:
        found: list[tuple[Held, Waiting]] = []
        self._sift_dead(queue, set(), None, found)
        return found

    def _sift_dead(self, queue: str, wanted: set[str], action: Any, seen: list[tuple[Held, Waiting]] | None = None) -> list[str]:
        name = self._topology.dead(queue)
        deadline = time.monotonic() + LOCAL_SECONDS
        done: list[str] = []
        with self._sender.link(deadline) as link:
            if not _messages(link, name, deadline):
                return done
            link.open_channel(4, deadline)
            found: dict[str, tuple[Held, Waiting]] = {}
            count = gone = 0
            while count < _BROWSED and (arrived := _get(link, name, deadline)) is not None:
                tag = wire.gotten(arrived)[0]
                held, reason, died_at = _dead_letter(arrived, queue, tag)
                count += 1
                older = found.pop(held.id, None)
                if older is not None and older[0].tag is not None:
                    link.send(wire.acknowledgement(4, older[0].tag), deadline)
                    gone += 1
                found[held.id] = held, self._waiting(held, reason=reason, died_at=died_at)
            for held, _ in found.values():
                if held.id in wanted and held.tag is not None:
                    if action is not None:
                        link.publish([action(held)], deadline)
                    link.send(wire.acknowledgement(4, held.tag), deadline)
                    done.append(held.id)
                    gone += 1
            if seen is not None:
                seen.extend(found.values())
            # Closing the channel gives back, to their places, all that was not acknowledged: soon.
            link.ask(4, wire.frame(4, wire.CHANNEL_CLOSE, b"\x00\xc8\x00\x00\x00\x00\x00"), wire.CHANNEL_CLOSE_OK, deadline)
            soon = time.monotonic() + 1.0
            while _messages(link, name, deadline) < count - gone and time.monotonic() < soon:
                time.sleep(0.002)
        return done

    def _waiting(self, held: Held, *, reason: str = "", died_at: float | None = None) -> Waiting:
        message, _ = self._decode(held)
        return Waiting(
            id=held.id,
            queue=held.queue,
            state="dead" if died_at is not None else "leased",
            message=message,
            waiting_since=held.since,
            node=held.holder.node if held.holder else None,
            process=held.holder.process if held.holder else None,
            crashes=held.crashes,
            interruptions=held.interruptions,
            reason=reason,
            died_at=died_at,
        )

    # -- inside ------------------------------------------------------------------------------------------------------

    def _decode(self, held: Held) -> tuple[Message | None, str]:
        try:
            headers, properties = wire.read_properties(held.properties)
            if "celeriac-raw" in headers:
                headers, properties = wire.read_properties(headers["celeriac-raw"])
            if "celeriac-reply-to" in headers:
                properties["reply_to"] = headers["celeriac-reply-to"]
            return message_of(headers, properties, held.body, queue=held.queue), ""
        except DecodeError as problem:
            return None, f"The stored message cannot be decoded: {problem}"
        except (ValueError, IndexError, TypeError, KeyError, OverflowError) as problem:
            return None, f"The stored message cannot be decoded: its headers are damaged ({problem})."
        except Exception as problem:  # struct.error
            return None, f"The stored message cannot be decoded: its headers are cut off ({problem})."

    def _place_of(self, node: str) -> Intake | None:
        """The intake that serves this node, when it is in this process."""
        for engine in _here(self):
            if node in engine._intake.nodes or any(
                held.holder is not None and held.holder.node == node for held in engine._intake.ledger.held.values()
            ):
                return engine._intake
        return self._intake if self._intake.nodes else None

    def _desk(self, node: str) -> Desk:
        desk: Desk | None = getattr(self._desks, "last", None)
        if desk is None or desk.node != node:
            self._leave_desk()
            desk = self._desks.last = Desk(node, self._intake.lines.heartbeat_seconds)
        return desk

    def _leave_desk(self) -> None:
        desk = getattr(self._desks, "last", None)
        if desk is not None:
            self._desks.last = None
            desk.close()


def _here(engine: RabbitMQEngine) -> list[RabbitMQEngine]:
    """The engines of this process over the same queues, itself first: what one of them holds, the others can settle."""
    others = [one for one in _engines if one is not engine and one.url == engine.url and one._topology.prefix == engine._topology.prefix]
    return [engine, *others]


def _is_known_of(depth: Depth) -> bool:
    """Something of the queue is there, as far as we can see."""
    return bool(depth.ready or depth.leased or depth.dead or depth.paused_by is not None)


def _seconds_to_wait(message: Message, now: float) -> float:
    if message.delay_seconds is not None:
        return message.delay_seconds
    return message.eta.timestamp() - now if message.eta is not None else 0.0


def _messages(link: Any, name: str, deadline: float) -> int:
    """How many are ready in a queue; 0 when there is no such queue."""
    try:
        return wire.counted(link.risk(wire.declare_queue(2, name, passive=True), wire.QUEUE_DECLARE_OK, deadline))[1]
    except wire.Refused:
        return 0


def _get(link: Any, name: str, deadline: float) -> wire.Arrived | None:
    link.send(wire.get(4, name), deadline)
    answer: wire.Arrived = link.await_one(4, (wire.BASIC_GET_OK, wire.BASIC_GET_EMPTY), deadline)
    return answer if answer.method == wire.BASIC_GET_OK else None


def _dead_letter(arrived: wire.Arrived, queue: str, tag: int) -> tuple[Held, str, float]:
    headers, _ = wire.read_properties(arrived.properties)
    counts = headers.get("celeriac-counts") or [0, 0, 0]
    held = Held(
        id=str(headers.get("id")),
        queue=queue,
        properties=arrived.properties,
        body=arrived.body,
        crashes=counts[0],
        interruptions=counts[1],
        token=counts[2],
        since=float(headers.get("celeriac-since") or 0.0),
        tag=tag,
    )
    return held, str(headers.get("celeriac-reason") or ""), float(headers.get("celeriac-died") or 0.0)


def _forget_connections() -> None:
    """In a child: none of its parent's connections is its own."""
    for engine in list(_engines):
        engine._intake.forget()
        engine._sender.forget()
        engine._intake = engine._new_intake(engine._intake.lines.heartbeat_seconds)
        engine._desks = threading.local()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)

_LETTER = wire.properties({}, content_type="application/json", content_encoding="utf-8", priority=0, correlation_id="", mode=1)

if TYPE_CHECKING:
    _complete: type[Broker] = RabbitMQEngine
