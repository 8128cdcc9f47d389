"""What the RabbitMQ engine publishes, and what it has RabbitMQ keep: queues, exchanges, the queues in which messages wait for their time, notes.

Every publication is confirmed by the server before `publish` returns. A connection belongs to one call at a time.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import msgspec

from ..core.errors import EngineCorrupt, EngineUnavailable, EngineUnsure
from ..core.routing import Queue
from . import rabbitmq_wire as wire
from .network import Breaker

LEVELS = 28
"""There are so many queues in which messages wait, one for each power of two of STEP_SECONDS. They add up to 155 days; who waits longer goes round again."""
STEP_SECONDS = 0.05
LONGEST_SECONDS = STEP_SECONDS * (2**LEVELS - 1)
LOCAL_SECONDS = 8.0
"""How long a call waits for RabbitMQ, unless it says otherwise."""
LETTER_SECONDS = 60
NOTE_SECONDS = 2.0
"""So long a note may take, before it is tried again on another connection."""
NAME_SECONDS = 0.5
"""... and so long the name of a new queue: whoever publishes waits for it."""
IDLE_SECONDS = 3.0
"""A connection that was not used for so long is asked first whether it is there: on its way a firewall, say, may have forgotten it."""
ASK_SECONDS = 1.0
"""So long it may take to answer; in a hurry, half of the time there is."""
WINDOW = 1000
"""So many publications may be unconfirmed at once."""
NAME_BYTES = 170
"""Longer names of queues are shortened, with a hash; AMQP allows 255, and we add to them."""
MANY_DELIVERIES = 1_000_000_000
_NOTES_BYTES = 50_000_000

_encode = msgspec.json.Encoder().encode
T = TypeVar("T")


class Publication(NamedTuple):
    """One message to be published, and what has to exist for it."""

    exchange: str
    key: str
    properties: bytes
    body: bytes
    needs: tuple[tuple[str, str], ...] = ()
    optional: bool = False
    """It may go nowhere, when its queue is gone."""


class Topology:
    """The names and arguments of all that we declare."""

    def __init__(self, *, prefix: str = "", queue_type: str = "quorum", queues: Iterable[Queue] = ()) -> None:
        self.prefix = prefix
        self.queue_type = queue_type
        self.queues = {queue.name: queue for queue in queues}
        self.exchanges = {queue.exchange: queue.exchange_type for queue in self.queues.values() if queue.exchange}
        self.replies_expire_seconds = 86400.0
        self._names: dict[str, str] = {}

    def queue(self, name: str) -> str:
        """The name of a queue as RabbitMQ has it."""
        known = self._names.get(name)
        if known is None:
            known = self.prefix + name.replace("\n", "%0A").replace("\r", "%0D")  # RabbitMQ leaves line breaks out
            raw = known.encode()
            if len(raw) > NAME_BYTES:
                known = raw[:90].decode(errors="ignore") + "." + hashlib.sha256(raw).hexdigest()
            if len(self._names) < 10_000:
                self._names[name] = known
        return known

    def returned(self, name: str) -> str:
        """Where messages wait that were given back: they come before those of the queue itself."""
        return self.queue(name) + ".celeriac.returned"

    def dead(self, name: str) -> str:
        return self.queue(name) + ".celeriac.dead"

    def own(self, what: str) -> str:
        return self.queue(f"celeriac.{what}")

    # Whoever uses the server shares these: they know no queues but by the routing key.

    def level(self, number: int) -> str:
        return f"celeriac.delay.{number}"

    @property
    def due(self) -> str:
        return "celeriac.due"

    @property
    def stray(self) -> str:
        """Where `due` sends what comes for a queue that is gone."""
        return "celeriac.stray"

    def deletes_itself(self, name: str) -> bool:
        """The queue goes with its last reader, and all that is in it."""
        given = self.queues.get(name)
        return given is not None and bool(given.options.get("auto_delete"))

    def route(self, queue: str, exchange: str, key: str) -> tuple[str, str]:
        """Exchange and routing key of a message: those of `task_queues` when its exchange is named there, else the queue itself."""
        if exchange and exchange in self.exchanges:
            return self.prefix + exchange, key or queue
        return "", self.queue(queue)

    def delayed(self, key: str, seconds: float) -> tuple[str, str, float]:
        """Exchange and routing key with which a message comes to `key`, the name of a queue, after so many seconds; and how many seconds are left then."""
        left = max(0.0, seconds - LONGEST_SECONDS)
        steps = min(2**LEVELS - 1, max(1, -int(-seconds // STEP_SECONDS)))
        bits = f"{steps:0{LEVELS}b}"
        return self.level(steps.bit_length() - 1), ".".join(bits) + "." + key, left

    def arguments(self, kind: str, name: str) -> dict[str, Any]:
        """The arguments of a queue."""
        match kind:
            case "queue":
                given = self.queues.get(name)
                if given is None:
                    return {"x-queue-type": "quorum"} if self.queue_type == "quorum" else {}
                return given.arguments(self.queue_type)
            case "returned":
                return {"x-expires": 3_600_000} if self.deletes_itself(name) else {"x-queue-type": "quorum"}
            case "dead":
                return {"x-queue-type": "quorum", "x-delivery-limit": MANY_DELIVERIES}
            case "replies":
                return {"x-queue-type": "quorum", "x-expires": round(self.replies_expire_seconds * 1000)}
            case "letters":
                return {"x-queue-type": "quorum", "x-message-ttl": LETTER_SECONDS * 1000, "x-expires": 2 * LETTER_SECONDS * 1000}
            case _:
                return {"x-queue-type": "stream", "x-max-length-bytes": _NOTES_BYTES, "x-stream-max-segment-size-bytes": _NOTES_BYTES // 10}

    def name(self, kind: str, name: str) -> str:
        match kind:
            case "queue":
                return self.queue(name)
            case "returned":
                return self.returned(name)
            case "dead":
                return self.dead(name)
            case "replies":
                return name
            case "letters":
                return self.own(f"letters.{name}")
            case _:
                return self.own(name)


def is_same(publication: Publication, returned: wire.Arrived) -> bool:
    """The message that has come back is this one. Its headers may have been added to (`message_interceptors`)."""
    return publication.body == returned.body and wire.read_id(publication.properties) == wire.read_id(returned.properties)


def noted(topology: Topology, stream: str, note: dict[str, Any]) -> Publication:
    """A note, to a stream."""
    return Publication("", topology.own(stream), _NOTE, _encode(note), (("stream", stream),))


class Link(wire.Connection):
    """A connection that publishes: channel 1 is confirmed, channel 2 is for what the server may refuse."""

    def __init__(self, address: wire.Address, topology: Topology, deadline: float, *, tls: Any = None) -> None:
        super().__init__(address, deadline, tls=tls, name="celeriac publisher")
        self.topology = topology
        self.declared: set[tuple[str, str]] = set()
        self.made: list[str] = []
        """Queues that have not been there before, and whose names are to be noted."""
        self._scratch = False
        self._published = 0
        self.open_channel(1, deadline)
        self.ask(1, wire.frame(1, wire.CONFIRM_SELECT, b"\x00"), wire.CONFIRM_SELECT_OK, deadline)

    # -- publishing --------------------------------------------------------------------------------------------------

    def publish(self, publications: Sequence[Publication], deadline: float) -> None:
        """→ confirmed. What the server says it did not take (a queue was deleted, or is just being made) is sent again.

        Raises EngineUnavailable; when `sent` is true by then, some of them may be there all the same.
        """
        left = list(publications)
        for pause in (0.02, 0.05, 0.1, 0.2, None):
            self.prepare(left, deadline)
            left, why = self._publish_once(left, deadline)
            if not left:
                return
            self.declared.clear()
            if pause is None or time.monotonic() + pause > deadline:
                raise EngineUnavailable(f"RabbitMQ at {self.address} did not take a message: {why}")
            time.sleep(pause)

    def prepare(self, publications: Sequence[Publication], deadline: float) -> None:
        """All that has to exist for them exists when this returns. Nothing of them is sent yet."""
        for publication in publications:
            for need in publication.needs:
                if need not in self.declared:
                    self.declare(*need, deadline)

    sent = False
    """Messages are on their way whose confirmation has not come."""

    def _publish_once(self, publications: Sequence[Publication], deadline: float) -> tuple[list[Publication], str]:
        """Returns those that were not taken, and why."""
        if self.blocked:
            self.read(0.0)
            self._refuse_if_blocked()
        refused: dict[int, Publication] = {}
        why = ""
        for start in range(0, len(publications), WINDOW):
            part = publications[start : start + WINDOW]
            first = self._published + 1
            self._published += len(part)
            data = [
                wire.publication(
                    1,
                    wire.shortstr(one.exchange),
                    wire.shortstr(one.key),
                    one.properties,
                    one.body,
                    mandatory=not one.optional,
                    largest=self.largest_frame,
                )
                for one in part
            ]
            self.sent = True
            self.send(b"".join(data), deadline)
            low = first
            done: set[int] = set()
            while low <= self._published:
                found = self._await_confirm(deadline)
                if found.method == wire.BASIC_RETURN:
                    why = wire.read_short(found.arguments, 2)[0]
                    refused.update({first + at: one for at, one in enumerate(part) if is_same(one, found)})
                    continue
                number = int.from_bytes(found.arguments[:8], "big")
                numbers = range(low, number + 1) if found.arguments[8] & 1 else (number,)
                if found.method == wire.BASIC_NACK:
                    why = "its queue could not keep it (full, or without a leader just now)"
                    refused.update({one: part[one - first] for one in numbers if one not in done})
                done.update(numbers)
                while low in done:
                    done.discard(low)
                    low += 1
            self.sent = False
        return list(refused.values()), why

    def _await_confirm(self, deadline: float) -> wire.Arrived:
        while (found := self.take(1, _CONFIRMS)) is None:
            self._refuse_if_blocked()
            if not self.read(deadline) and time.monotonic() >= deadline:
                self.drop("")
                raise EngineUnavailable(f"RabbitMQ at {self.address} did not confirm in time.")
        return found

    def _refuse_if_blocked(self) -> None:
        """The server reads nothing that we send now; a connection that has sent something is of no use until it does."""
        if self.blocked:
            self.drop("")
            raise EngineUnavailable(f"RabbitMQ at {self.address} takes no messages now: {self.blocked}.")

    # -- declaring ---------------------------------------------------------------------------------------------------

    def declare(self, kind: str, name: str, deadline: float) -> None:
        """Makes sure that it is there. What is there already is taken as it is, unless `task_queues` says how it has to be."""
        if (kind, name) in self.declared:
            return
        topology = self.topology
        if kind == "delays":
            self._declare_delays(deadline)
        elif kind == "due":
            self.risk(wire.bind_queue(2, name, topology.due, "*." * LEVELS + name), wire.QUEUE_BIND_OK, deadline)
        elif kind == "stray":
            key = "*." * LEVELS + topology.queue(name)
            self.risk(wire.bind_queue(2, topology.returned(name), topology.stray, key), wire.QUEUE_BIND_OK, deadline)
        else:
            wanted = topology.name(kind, name)
            arguments = topology.arguments(kind, name)
            given = topology.queues.get(name) if kind == "queue" else None
            if kind in ("letters", "replies"):
                self.risk(wire.declare_queue(2, wanted, arguments), wire.QUEUE_DECLARE_OK, deadline)
            elif given is not None and (given.exchange or given.options):
                self._declare_as_said(given, wanted, arguments, deadline)
            else:
                self._declare_if_missing(kind, name, wanted, arguments, deadline)
        self.declared.add((kind, name))

    def risk(self, request: bytes, answer: int, deadline: float) -> wire.Arrived:
        """Asks what the server may refuse, on a channel of its own. Raises Refused."""
        if not self._scratch:
            self.open_channel(2, deadline)
            self._scratch = True
        try:
            return self.ask(2, request, answer, deadline)
        except wire.Refused:
            self._scratch = False
            raise

    def _declare_if_missing(self, kind: str, name: str, wanted: str, arguments: dict[str, Any], deadline: float) -> None:
        try:
            self.risk(wire.declare_queue(2, wanted, passive=True), wire.QUEUE_DECLARE_OK, deadline)
            return
        except wire.Refused as refused:
            if refused.code != wire.NOT_FOUND:
                raise as_error(refused, wanted) from refused
        if kind == "queue":
            self.made.append(name)
        try:
            self.risk(wire.declare_queue(2, wanted, arguments), wire.QUEUE_DECLARE_OK, deadline)
        except wire.Refused as refused:
            raise as_error(refused, wanted) from refused

    def _declare_as_said(self, given: Queue, wanted: str, arguments: dict[str, Any], deadline: float) -> None:
        """A queue of `task_queues` that says more than a name."""
        try:
            self.risk(wire.declare_queue(2, wanted, arguments, flags=given.flags()), wire.QUEUE_DECLARE_OK, deadline)
            if given.exchange:
                exchange = self.topology.prefix + given.exchange
                self.risk(wire.declare_exchange(2, exchange, given.exchange_type), wire.EXCHANGE_DECLARE_OK, deadline)
                key = given.routing_key or given.name
                self.risk(wire.bind_queue(2, wanted, exchange, key), wire.QUEUE_BIND_OK, deadline)
        except wire.Refused as refused:
            raise as_error(refused, wanted) from refused

    def _declare_delays(self, deadline: float) -> None:
        """Queue n keeps a message for 2ⁿ steps. The routing key says by its bits which of them a message passes through; from level to level, RabbitMQ moves it
        (dead-lettering, at least once), in the end to `due`, which knows the queues by name. What is gone by then it would try again after minutes, and hold up all that is
        behind it; so `due` leaves it to `stray`, which knows the names too, and puts it where messages wait that were given back."""
        topology = self.topology
        # Whoever finds `due` may rely on all the others but this: that it is bound. A message that came where nothing is bound would be tried again after minutes.
        to_due = wire.bind_exchange(2, topology.due, topology.level(0), "*." * (LEVELS - 1) + "0.#")
        try:
            self.risk(wire.declare_exchange(2, topology.stray, "topic"), wire.EXCHANGE_DECLARE_OK, deadline)
        except wire.Refused as refused:
            raise as_error(refused, topology.stray) from refused
        try:
            self.risk(to_due, wire.EXCHANGE_BIND_OK, deadline)
            return
        except wire.Refused as refused:
            if refused.code != wire.NOT_FOUND:
                raise as_error(refused, topology.due) from refused
        self.open_channel(2, deadline)
        self._scratch = True
        requests: list[bytes] = []
        answers: list[int] = []
        for number in range(LEVELS):
            arguments = {
                "x-queue-type": "quorum",
                "x-overflow": "reject-publish",
                "x-dead-letter-strategy": "at-least-once",
                "x-message-ttl": round(1000 * STEP_SECONDS) * 2**number,
                "x-dead-letter-exchange": topology.level(number - 1) if number else topology.due,
                "x-delivery-limit": MANY_DELIVERIES,
            }
            level = topology.level(number)
            requests += [wire.declare_exchange(2, level, "topic"), wire.declare_queue(2, level, arguments)]
            answers += [wire.EXCHANGE_DECLARE_OK, wire.QUEUE_DECLARE_OK]
        for number in range(LEVELS):
            level, before = topology.level(number), "*." * (LEVELS - 1 - number)
            requests.append(wire.bind_queue(2, level, level, before + "1.#"))
            answers.append(wire.QUEUE_BIND_OK)
            if number:
                requests.append(wire.bind_exchange(2, topology.level(number - 1), level, before + "0.#"))
                answers.append(wire.EXCHANGE_BIND_OK)
        requests.append(wire.declare_exchange(2, topology.due, "topic", {"alternate-exchange": topology.stray}))
        requests.append(to_due)
        answers += [wire.EXCHANGE_DECLARE_OK, wire.EXCHANGE_BIND_OK]
        try:
            self.send(b"".join(requests), deadline)
            for answer in answers:
                self.await_one(2, (answer,), deadline)
        except wire.Refused as refused:
            self._scratch = False
            raise as_error(refused, topology.due) from refused

    # -- letters -----------------------------------------------------------------------------------------------------

    def take_letters(self, address: str, deadline: float) -> list[bytes]:
        self.declared.discard(("letters", address))  # it may have expired meanwhile
        self.declare("letters", address, deadline)
        letters: list[bytes] = []
        while True:
            self.send(wire.get(2, self.topology.name("letters", address), acknowledged=False), deadline)
            found = self.await_one(2, (wire.BASIC_GET_OK, wire.BASIC_GET_EMPTY), deadline)
            if found.method == wire.BASIC_GET_EMPTY:
                return letters
            letters.append(found.body)

    # -- notes -------------------------------------------------------------------------------------------------------

    def note(self, stream: str, note: dict[str, Any], deadline: float) -> None:
        """Appends to a stream, which whoever wants to know reads."""
        self.publish([noted(self.topology, stream, note)], deadline)

    def read_notes(self, stream: str, since: float | None, deadline: float) -> list[dict[str, Any]]:
        """All notes of a stream (those since a moment: and maybe some before it), oldest first; what had been confirmed before this call is among them."""
        nonce = hashlib.sha256(f"{id(self)}{time.monotonic_ns()}{threading.get_ident()}".encode()).hexdigest()
        self.note(stream, {"mark": nonce}, deadline)
        self.open_channel(3, deadline)
        offset: Any = "first" if since is None else wire.Moment(since)
        name = self.topology.own(stream)
        self.send(
            wire.prefetch(3, 1000) + wire.consume(3, name, "notes", {"x-stream-offset": offset}),
            deadline,
        )
        notes: list[dict[str, Any]] = []
        found = False
        while not found:
            arrived = self.await_one(3, (wire.BASIC_DELIVER,), deadline)
            unacknowledged = wire.delivered(arrived)[1]
            note = msgspec.json.decode(arrived.body)
            if "mark" in note:
                found = note["mark"] == nonce
            else:
                notes.append(note)
            if unacknowledged % 250 == 0:
                self.send(wire.acknowledgement(3, unacknowledged, multiple=True), deadline)
        self.ask(3, wire.frame(3, wire.CHANNEL_CLOSE, b"\x00\xc8\x00\x00\x00\x00\x00"), wire.CHANNEL_CLOSE_OK, deadline)
        self.arrived.clear()
        return notes


class Sender:
    """The publishing side of an engine: connections that are used one call at a time, and kept for the next."""

    def __init__(self, addresses: Sequence[wire.Address], topology: Topology, *, tls: Any = None, connections: int = 4) -> None:
        self.addresses = addresses
        self.topology = topology
        self.tls = tls
        self.breaker = Breaker()
        self._unnamed: list[str] = []
        self._idle: list[Link] = []
        self._room = threading.BoundedSemaphore(connections)

    def publish(self, publications: Sequence[Publication], deadline: float) -> None:
        """→ confirmed. Nothing is published a second time: when the connection is lost with messages on their way, the error says so (`EngineUnsure`)."""
        if not publications:
            return
        link = self._prepared(publications, deadline)
        try:
            self._carry_out(link, link.publish, publications, deadline)
        except EngineUnavailable as problem:
            if link.sent:
                text = f"{problem} Whether it has the messages is not known, so they are not sent again."
                raise EngineUnsure(text, repeatable=False) from problem
            raise
        self._give_back(link)
        if self._unnamed:
            self._name_queues(deadline)

    def _name_queues(self, deadline: float) -> None:
        """Notes which queues were made, lest nobody knows of them. When their stream is away the worker that reads them does it."""
        names, self._unnamed = self._unnamed, []
        with suppress(EngineUnavailable):
            for name in names:
                self.note("notes", {"queue": name}, min(deadline, time.monotonic() + NAME_SECONDS))
        self.breaker.answered()  # the server has just confirmed something else

    def _prepared(self, publications: Sequence[Publication], deadline: float) -> Link:
        """A connection over which these may be published. RabbitMQ ends one that uses what somebody else is just making; declaring bears repeating."""
        while True:
            link = self._link(deadline)
            try:
                self._carry_out(link, link.prepare, publications, deadline)
                return link
            except EngineUnavailable as problem:
                if not is_being_made(problem) or time.monotonic() + 0.05 > deadline:
                    raise
                self.breaker.answered()  # it lives
                time.sleep(0.02)

    def _carry_out(
        self, link: Link, action: Callable[[Sequence[Publication], float], None], publications: Sequence[Publication], deadline: float
    ) -> None:
        """When it fails, nobody uses this connection again: an answer may still come."""
        try:
            action(publications, deadline)
        except EngineUnavailable as problem:
            if link.closed:
                self.breaker.failed(str(problem))
            self._let_go(link)
            raise
        except wire.Refused as refused:
            link.sent = False
            self._let_go(link)
            raise as_error(refused, publications[0].key) from refused
        except BaseException:
            self._let_go(link)
            raise

    def note(self, stream: str, note: dict[str, Any], deadline: float) -> None:
        """Appends to a stream. It may come twice; notes are such that this does not matter."""
        self._patiently(lambda link, until: link.note(stream, note, until), deadline)

    def read_notes(self, stream: str, since: float | None, deadline: float) -> list[dict[str, Any]]:
        return self._patiently(lambda link, until: link.read_notes(stream, since, until), deadline)

    def take_letters(self, address: str, deadline: float) -> list[bytes]:
        """All that are in a mailbox now. Whoever reads it afterwards finds it made: RabbitMQ ends a connection that reads a queue which somebody else is just making, such
        as the one who posts there. Here that is a connection that holds nothing."""
        return self._patiently(lambda link, until: link.take_letters(address, until), deadline)

    def _patiently(self, action: Callable[[Link, float], T], deadline: float) -> T:
        """For what may be done twice: again, when the connection was lost, and until a stream is there that is just being made, or started with its server (what is
        published to it before that is never confirmed)."""
        tries = 0
        while True:
            try:
                with self.link(deadline) as link:
                    return action(link, min(deadline, time.monotonic() + NOTE_SECONDS))
            except EngineUnavailable as problem:
                if is_being_made(problem):
                    self.breaker.answered()  # it lives
                else:
                    tries += 1
                if tries == 3 or time.monotonic() + 0.1 > deadline:
                    raise
                time.sleep(0.02)

    def link(self, deadline: float) -> _Borrowed:
        """A connection, for what is not publishing: `with sender.link(deadline) as link`."""
        return _Borrowed(self, deadline)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def forget(self) -> None:
        """In a child: closes our copies of the parent's connections, without a word to the server."""
        for link in self._idle:
            link.drop("")
        self._idle = []
        self._room = threading.BoundedSemaphore(4)
        self.breaker = Breaker()

    def _link(self, deadline: float) -> Link:
        if not self._room.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise EngineUnavailable("All connections to RabbitMQ are busy.")
        try:
            while self._idle:
                try:
                    link = self._idle.pop()
                except IndexError:
                    break
                if self._lives(link, deadline):
                    return link
                link.drop("")
            self.breaker.check(deadline)
            return self._connect(deadline)
        except BaseException:
            self._room.release()
            raise

    def _lives(self, link: Link, deadline: float) -> bool:
        """Whether a connection that was left alone is there still."""
        if link.is_dead() or link.heard_at <= self.breaker.failed_at:
            return False
        now = time.monotonic()
        if link.blocked or now - link.heard_at < IDLE_SECONDS:
            return True
        try:
            link.ask(1, wire.prefetch(1, 0), wire.BASIC_QOS_OK, now + min(ASK_SECONDS, (deadline - now) / 2))
        except EngineUnavailable:
            with suppress(IndexError):  # they went the same way
                while True:
                    self._idle.pop().drop("")
            return False
        return True

    def _connect(self, deadline: float) -> Link:
        problem: EngineUnavailable | None = None
        for position, address in enumerate(self.addresses):
            share = (deadline - time.monotonic()) / (len(self.addresses) - position)
            try:
                return Link(address, self.topology, time.monotonic() + share, tls=self.tls)
            except EngineUnavailable as trouble:
                problem = trouble
        self.breaker.failed(str(problem))
        assert problem is not None
        raise problem

    def _give_back(self, link: Link) -> None:
        self.breaker.answered()
        if link.made:
            self._unnamed += link.made
            link.made = []
        if link.closed:
            self._let_go(link)
            return
        self._idle.append(link)
        self._room.release()

    def _let_go(self, link: Link) -> None:
        link.drop("")
        self._room.release()


def is_being_made(problem: EngineUnavailable) -> bool:
    """A stream is not ready: somebody else is just making it, and RabbitMQ ends connections over that; or the server has just been started again."""
    return any(word in str(problem) for word in ("RESOURCE_ERROR", "INTERNAL_ERROR", "down or inaccessible"))


def is_away(problem: EngineUnavailable) -> bool:
    """It may be the stream alone that is not there."""
    return is_being_made(problem) or "in time" in str(problem)


class _Borrowed:
    def __init__(self, sender: Sender, deadline: float) -> None:
        self.sender = sender
        self.deadline = deadline

    def __enter__(self) -> Link:
        self.borrowed = self.sender._link(self.deadline)
        return self.borrowed

    def __exit__(self, kind: Any, problem: Any, _: Any) -> None:
        if problem is None:
            self.sender._give_back(self.borrowed)
            return
        self.sender._let_go(self.borrowed)
        if isinstance(problem, EngineUnavailable):
            self.sender.breaker.failed(str(problem))


def as_error(refused: wire.Refused, name: str) -> EngineUnavailable:
    """What it means that the server refused what was asked about this queue or exchange, and what to do."""
    if refused.code == wire.PRECONDITION_FAILED:
        return EngineCorrupt(
            f"{name!r} exists in RabbitMQ and is not as it is to be: {refused.text}. Delete it there, or say in task_queues how it is."
        )
    if refused.code == wire.ACCESS_REFUSED:
        return EngineCorrupt(
            f"RabbitMQ refuses access to {name!r}: {refused.text}. Give this user the rights to configure, write and read it."
        )
    advice = " It may just be starting; if it stays so, see docs/engines/rabbitmq.md." if "inaccessible" in refused.text else ""
    return EngineUnavailable(f"RabbitMQ refused what it was asked about {name!r}: {refused.text}.{advice}")


_CONFIRMS = frozenset((wire.BASIC_ACK, wire.BASIC_NACK, wire.BASIC_RETURN))
_NOTE = wire.properties({}, content_type="application/json", content_encoding="utf-8", priority=0, correlation_id="")
