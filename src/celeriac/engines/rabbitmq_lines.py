"""A supervisor's two connections to RabbitMQ: one gives it messages, over the other it publishes. What was subscribed to, acknowledged, posted and confirmed.

It waits for no confirmation, since it serves processes meanwhile: what is to be done then is remembered (`_Posted`). Why two: RabbitMQ reads nothing from a connection
that publishes while it has no memory left, and acknowledgements have to arrive. When one of them is lost, so is the other: all that was given is the broker's again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import msgspec

from ..core.errors import EngineUnavailable
from . import rabbitmq_wire as wire
from .rabbitmq_sender import LOCAL_SECONDS, Publication, Sender, is_same

CONNECT_SECONDS = 3.0
DOUBT_SECONDS = 2.0
"""A server that has left somebody without an answer may take so long to answer the supervisor whether it is there."""
REPEAT_SECONDS = 0.1
"""When something is published again that RabbitMQ did not take."""
NOTES = 4
"""The channel of the notes: RabbitMQ closes it when their stream is away."""


class Consumer(msgspec.Struct):
    """A subscription to one queue of the broker."""

    tag: str
    queue: str
    kind: str
    prefetch: int = 0
    """So many are given at most, by it and by those that were begun before it for the same queue."""
    begun: bool = False
    """The server has said that it began; until then it must not be cancelled (RabbitMQ 3.10 loses the channel over it)."""
    closing: bool = False
    asked_at: float = 0.0


class _Posted(msgspec.Struct, eq=False):
    """What we publish ourselves, until RabbitMQ has confirmed all of it."""

    publications: Sequence[Publication]
    first: int
    waiting: int
    tags: Sequence[int]
    """To be acknowledged then."""
    at: float
    refused: list[Publication] = []


class Lines:
    """The connections, both or none.

    `begin` is called when they are new, and asks for what is to be read; `lose` when they are gone, with how much of each queue was asked for, and how
    many questions were answered.
    """

    def __init__(
        self, sender: Sender, heartbeat_seconds: int, *, begin: Callable[[], None], lose: Callable[[dict[str, int], int], None]
    ) -> None:
        self.sender = sender
        self.topology = sender.topology
        self.heartbeat_seconds = heartbeat_seconds
        self._begin = begin
        self._lose = lose
        self.connection: wire.Connection | None = None
        self.outlet: wire.Connection | None = None
        """Over which we publish; made when it is needed first."""
        self.consumers: dict[str, Consumer] = {}
        self.open: dict[tuple[str, str], Consumer] = {}
        """The last subscription to each queue, by its name and kind."""
        self._ended: dict[str, Consumer] = {}
        self._numbers = 0
        self._notes_open = False
        self._unacknowledged_notes = 0
        self._declared: set[tuple[str, str]] = set()
        self.answered = 0
        """How many of our questions (`ask`) over this connection have an answer."""
        self._asked = 0
        self._given: deque[int] = deque()
        """The numbers of what RabbitMQ has given, from the first that is not settled on …"""
        self._settled: set[int] = set()
        """… and those among them that are settled."""
        self._outbox: dict[int, _Posted] = {}
        self._posted = 0
        self._refused: list[tuple[float, _Posted]] = []
        self._doubted_at = 0.0

    # -- connecting ------------------------------------------------------------------------------------------------------------

    def connected(self, deadline: float) -> wire.Connection:
        """The connection that gives; a new one if there is none."""
        connection = self.connection
        if connection is not None and not connection.closed and not (self.outlet is not None and self.outlet.closed):
            return connection
        if connection is not None:
            self.disconnect()
        self.sender.breaker.check(deadline)
        problem: EngineUnavailable | None = None
        addresses = self.sender.addresses
        for position, address in enumerate(addresses):
            share = time.monotonic() + min(deadline - time.monotonic(), CONNECT_SECONDS) / (len(addresses) - position)
            try:
                fresh = wire.Connection(
                    address, share, heartbeat_seconds=self.heartbeat_seconds, tls=self.sender.tls, name="celeriac worker"
                )
                for channel in (1, 2, 3):
                    fresh.open_channel(channel, share)
                self.sender.breaker.answered()
                self.connection = fresh
                self._begin()
                return fresh
            except (EngineUnavailable, wire.Refused) as trouble:
                self.disconnect()
                problem = trouble if isinstance(trouble, EngineUnavailable) else EngineUnavailable(str(trouble))
        self.sender.breaker.failed(str(problem))
        assert problem is not None
        raise problem

    def disconnect(self) -> None:
        """All that was given is the broker's again."""
        self.forget()
        windows = {queue: consumer.prefetch for (queue, kind), consumer in self.open.items() if kind == "queue"}
        came = self.connection.arrived if self.connection is not None else ()  # right before its end
        answered = self.answered + sum(one.method == wire.CHANNEL_FLOW_OK for one in came)
        self.connection = self.outlet = None
        self.consumers.clear()
        self.open.clear()
        self._ended.clear()
        self._notes_open = False
        self._declared.clear()
        self.answered = self._asked = 0
        self._given.clear()
        self._settled.clear()
        self._outbox.clear()
        self._refused.clear()
        self._posted = 0
        self._doubted_at = 0.0
        self._lose(windows, answered)

    def close(self) -> None:
        for one in (self.connection, self.outlet):
            if one is not None:
                one.close()
        self.disconnect()

    def forget(self) -> None:
        """Closes our sockets, without a word to the server: in a child of the process that opened them, say."""
        for one in (self.connection, self.outlet):
            if one is not None:
                one.drop("")

    def lives(self) -> bool:
        """There is a connection."""
        return self.connection is not None and not self.connection.closed

    def descriptors(self) -> list[int]:
        return [one.fileno() for one in (self.connection, self.outlet) if one is not None]

    def ask_if_in_doubt(self) -> None:
        """A call has failed since we heard of the server: a connection that nobody has closed may be dead all the same.

        Raises EngineUnavailable until it speaks, or another call has been answered.
        """
        connection, now = self.connected(time.monotonic() + LOCAL_SECONDS), time.monotonic()
        if connection.heard_at > self.sender.breaker.failed_at:
            self._doubted_at = 0.0
            return
        if not self._doubted_at:
            self._doubted_at = now
            connection.send(wire.prefetch(3, 1), now + DOUBT_SECONDS)  # this changes nothing, and is answered
        elif now - self._doubted_at > DOUBT_SECONDS:
            self.disconnect()
        if connection.closed or self.sender.breaker.fails():
            raise EngineUnavailable(f"RabbitMQ at {connection.address} is silent.")

    # -- subscriptions -----------------------------------------------------------------------------------------------------------

    def consume(self, queue: str, prefetch: int) -> None:
        """Makes RabbitMQ give us up to `prefetch` unacknowledged messages at a time of a queue, and as many that were given back."""
        prefetch = max(1, min(prefetch, 65000))
        deadline = time.monotonic() + LOCAL_SECONDS
        self.declare([("queue", queue), ("returned", queue)])
        connection = self.connected(deadline)  # if it is a new one, it may have begun with this queue
        for kind in ("returned", "queue"):
            consumer = self.open.get((queue, kind))
            there = consumer.prefetch if consumer is not None else 0
            if there >= prefetch:
                continue
            fresh = self.open[queue, kind] = self._consumer(queue, kind)
            fresh.prefetch, fresh.asked_at = prefetch, time.monotonic()
            # One more subscription, never another in the place of the last: what is on its way to one that is cancelled goes back, as if somebody had died with it.
            data = wire.prefetch(1, prefetch - there) + wire.consume(1, self.topology.name(kind, queue), fresh.tag)
            connection.send(data, deadline)

    def begin_to_stop(self, queues: Iterable[str]) -> None:
        """While `stopping()`, something of them may still come."""
        data = b""
        for queue in queues:
            for kind in ("returned", "queue"):
                if self.open.pop((queue, kind), None) is not None:
                    for consumer in self.consumers.values():
                        if consumer.queue == queue and consumer.kind == kind and not consumer.closing:
                            consumer.closing = True
                            data += wire.cancel(1, consumer.tag) if consumer.begun else b""
        if data:
            self.connected(time.monotonic() + LOCAL_SECONDS).send(data, time.monotonic() + LOCAL_SECONDS)

    def stopping(self) -> bool:
        return any(consumer.closing for consumer in self.consumers.values())

    def hold_custody(self, name: str, deadline: float) -> None:
        """What comes to this queue of our own is given to us, and given back to nobody."""
        connection = self.connected(deadline)
        if not self.has_custody():  # a new connection has begun with it
            self.consumers["custody"] = Consumer("custody", name, "custody")
            connection.send(wire.prefetch(1, 0) + wire.consume(1, name, "custody"), deadline)

    def has_custody(self) -> bool:
        """There is a queue of our own, as far as RabbitMQ has told."""
        return "custody" in self.consumers

    def read_letters(self, address: str) -> None:
        """A mailbox that is just being made ends the connection (see `Sender.take_letters`)."""
        self.declare([("letters", address)])
        deadline = time.monotonic() + LOCAL_SECONDS
        connection = self.connected(deadline)
        tag = self._consumer(address, "letters").tag
        connection.send(wire.consume(2, self.topology.name("letters", address), tag, acknowledged=False), deadline)

    def leave_letters(self, addresses: Iterable[str]) -> None:
        self._declared -= {("letters", address) for address in addresses}
        for consumer in self.consumers.values():
            if consumer.kind == "letters" and consumer.queue in addresses:
                self.connected(time.monotonic() + LOCAL_SECONDS).send(wire.cancel(2, consumer.tag), time.monotonic() + LOCAL_SECONDS)

    def read_notes(self) -> None:
        """From the first on."""
        self.declare([("stream", "notes")])
        deadline = time.monotonic() + LOCAL_SECONDS
        connection = self.connected(deadline)
        self.consumers["notes"] = Consumer("notes", "", "notes", asked_at=time.monotonic())
        begin = wire.prefetch(NOTES, 1000) + wire.consume(NOTES, self.topology.own("notes"), "notes", {"x-stream-offset": "first"})
        if not self._notes_open:
            self._notes_open = True
            begin = wire.frame(NOTES, wire.CHANNEL_OPEN, b"\x00") + begin
        connection.send(begin, deadline)

    def reads_notes(self) -> bool:
        """The server has said so."""
        notes = self.consumers.get("notes")
        return notes is not None and notes.begun

    def _consumer(self, queue: str, kind: str) -> Consumer:
        self._numbers += 1
        consumer = self.consumers[f"c{self._numbers}"] = Consumer(f"c{self._numbers}", queue, kind)
        return consumer

    # -- what arrives --------------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """What has come, without waiting."""
        for one in (self.connection, self.outlet):
            if one is not None:
                while one.read(0.0):
                    pass
                one.heartbeat()

    def arrivals(self) -> Iterator[tuple[Consumer, wire.Arrived]]:
        """What was read and is not for us to judge: messages; that a subscription has begun; that the channel of the notes was closed; that the queue of custody is gone."""
        connection = self.connection
        if connection is None:
            return
        arrived = connection.arrived
        later: list[wire.Arrived] = []
        while arrived and connection is self.connection:  # not what was given by one that has been replaced meanwhile
            one = arrived.popleft()
            method = one.method
            if method == wire.BASIC_DELIVER:
                yield self._delivered(one), one
            elif method == wire.BASIC_CONSUME_OK:
                begun = self.consumers.get(wire.read_short(one.arguments, 0)[0])
                if begun is not None:
                    begun.begun = True
                    if begun.closing:
                        connection.send(wire.cancel(1, begun.tag), time.monotonic() + LOCAL_SECONDS)
                    yield begun, one
            elif method == wire.CHANNEL_FLOW_OK:
                self.answered += 1
            elif method == wire.BASIC_CANCEL_OK:
                self._has_ended(wire.read_short(one.arguments, 0)[0])
            elif method == wire.BASIC_CANCEL:  # the queue was deleted, or its node is gone
                gone = self._has_ended(wire.read_short(one.arguments, 0)[0])
                if gone is not None:
                    for kind in ("returned", "queue"):
                        self.open.pop((gone.queue, kind), None)
                    self._declared = {need for need in self._declared if need[1] != gone.queue}
                    if gone.kind == "custody":
                        yield gone, one
            elif method == wire.CHANNEL_CLOSE and one.channel == NOTES:
                connection.send(wire.frame(NOTES, wire.CHANNEL_CLOSE_OK), time.monotonic() + LOCAL_SECONDS)
                self._notes_open = False
                notes = self.consumers.pop("notes", None)
                if notes is not None:
                    yield notes, one
            elif method == wire.CHANNEL_CLOSE:
                code, text = closing_words(one)
                self.disconnect()
                raise EngineUnavailable(f"RabbitMQ closed a channel ({code}): {text}")
            elif method not in _NOTHING_TO_SAY:
                later.append(one)
        arrived.extend(later)
        closed = self._hear_confirmations()
        if closed is not None:
            _, text = closing_words(closed)
            custody = self.consumers.get("custody")
            if custody is not None and custody.queue in text:  # its exchange went with it
                yield custody, closed
            self.disconnect()
            raise EngineUnavailable(f"RabbitMQ closed a channel: {text}")

    def _delivered(self, one: wire.Arrived) -> Consumer:
        name, tag, *_ = wire.delivered(one)
        if one.channel == 1:
            self._given.append(tag)
        consumer = self.consumers.get(name) or self._ended.get(name)
        if consumer is None:
            self.disconnect()  # so that it goes back
            raise EngineUnavailable(f"RabbitMQ gave for a subscription that there is not ({name}).")
        return consumer

    def _has_ended(self, tag: str) -> Consumer | None:
        """It is remembered: a quorum queue may give to a subscription even after it has said that it ended."""
        consumer = self.consumers.pop(tag, None)
        if consumer is not None:
            self._ended[tag] = consumer
            if len(self._ended) > 100:
                del self._ended[next(iter(self._ended))]
        return consumer

    # -- acknowledging ---------------------------------------------------------------------------------------------------------------

    def acknowledge(self, tags: Sequence[int]) -> None:
        """Says that these are done. When that does not arrive, RabbitMQ gives them again, and the ledger knows them."""
        connection = self.connection
        if not tags or connection is None or connection.closed:
            return
        self._settled.update(tags)
        given, up_to = self._given, 0
        while given and given[0] in self._settled:
            first = given.popleft()
            self._settled.discard(first)
            if first in tags:
                up_to = first
        # One word for all from the first on (it has to name one of these), and one for each of the others: the server's work is by words.
        data = [wire.acknowledgement(1, up_to, multiple=True)] if up_to else []
        data += [wire.acknowledgement(1, tag) for tag in tags if tag > up_to]
        with suppress(EngineUnavailable):  # whoever reads next finds the connection closed
            connection.send(b"".join(data), time.monotonic() + self.heartbeat_seconds)

    def ask(self) -> int:
        """A question that changes nothing. When so many are answered as this returns, RabbitMQ has read all that was acknowledged before."""
        deadline = time.monotonic() + LOCAL_SECONDS
        self.connected(deadline).send(wire.frame(1, wire.CHANNEL_FLOW, b"\x01"), deadline)
        self._asked += 1
        return self._asked

    def note_was_read(self, tag: int) -> None:
        self._unacknowledged_notes += 1
        if self._unacknowledged_notes >= 200 and self.connection is not None:
            self._unacknowledged_notes = 0
            self.connection.send(wire.acknowledgement(NOTES, tag, multiple=True), time.monotonic() + LOCAL_SECONDS)

    # -- publishing --------------------------------------------------------------------------------------------------------------------

    def post(self, publications: Sequence[Publication], tags: Sequence[int] = ()) -> None:
        """Publishes, and acknowledges these deliveries when RabbitMQ has confirmed. Does not wait for it; what is not taken is sent again, and what cannot be sent just now
        (EngineUnavailable) too."""
        if not publications:
            return
        connection = self.connection
        try:
            outlet = self._outlet()
            self.declare([need for publication in publications for need in publication.needs])
        except EngineUnavailable:
            if tags and connection is not None and self.connection is connection:
                self._refused.append((time.monotonic() + REPEAT_SECONDS, _Posted(publications, 0, 0, tags, 0.0, list(publications))))
            raise
        if tags and self.connection is not connection:
            return  # these deliveries are the broker's again
        posted = _Posted(publications, self._posted + 1, len(publications), tags, time.monotonic())
        self._posted += len(publications)
        self._outbox.update(dict.fromkeys(range(posted.first, self._posted + 1), posted))
        data = [
            wire.publication(
                1, wire.shortstr(one.exchange), wire.shortstr(one.key), one.properties, one.body,
                mandatory=True, largest=outlet.largest_frame,
            )
            for one in publications
        ]  # fmt: skip
        outlet.send(b"".join(data), time.monotonic() + LOCAL_SECONDS)

    def mention(self, note: Publication) -> None:
        """Publishes what nobody waits for: its stream may be away, and it is said again."""
        outlet = self._outlet()
        self._posted += 1
        data = wire.publication(1, wire.shortstr(note.exchange), wire.shortstr(note.key), note.properties, note.body)
        outlet.send(data, time.monotonic() + LOCAL_SECONDS)

    def posting(self) -> bool:
        """Something that was posted is not confirmed yet."""
        return bool(self._outbox or self._refused)

    def post_again(self, now: float) -> None:
        """What RabbitMQ did not take."""
        while self._refused and self._refused[0][0] <= now:
            _, posted = self._refused.pop(0)
            self.post(posted.refused, posted.tags)

    def pause_seconds(self, most: float) -> float:
        """So long one may sleep who waits for what is posted."""
        return REPEAT_SECONDS if self._refused else most

    def check_confirmations(self, now: float) -> None:
        """A server that confirms nothing for so long, and does not say that it cannot, is not there."""
        oldest = next(iter(self._outbox.values()), None)
        if oldest is not None and now - oldest.at > LOCAL_SECONDS and self.outlet is not None and not self.outlet.blocked:
            self.disconnect()
            raise EngineUnavailable("RabbitMQ did not confirm in time.")

    def declare(self, needs: Iterable[tuple[str, str]]) -> None:
        """Makes sure that they are there."""
        missing = dict.fromkeys(need for need in needs if need not in self._declared)
        if missing:
            deadline = time.monotonic() + LOCAL_SECONDS
            with self.sender.link(deadline) as link:
                link.declared -= missing.keys()  # what it knows may have been deleted since
                for kind, name in missing:
                    link.declare(kind, name, deadline)
            self._declared |= missing.keys()

    def _outlet(self) -> wire.Connection:
        connection = self.connected(time.monotonic() + LOCAL_SECONDS)
        if self.outlet is None:
            deadline = time.monotonic() + CONNECT_SECONDS
            try:
                fresh = wire.Connection(
                    connection.address,
                    deadline,
                    heartbeat_seconds=self.heartbeat_seconds,
                    tls=self.sender.tls,
                    name="celeriac worker, publishing",
                )
                fresh.open_channel(1, deadline)
                fresh.ask(1, wire.frame(1, wire.CONFIRM_SELECT, b"\x00"), wire.CONFIRM_SELECT_OK, deadline)
            except EngineUnavailable as problem:
                self.sender.breaker.failed(str(problem))
                raise
            self.outlet = fresh
        return self.outlet

    def _hear_confirmations(self) -> wire.Arrived | None:
        """Returns the end of the channel, if that has come."""
        while self.outlet is not None and self.outlet.arrived:
            one = self.outlet.arrived.popleft()
            if one.method in _ABOUT_PUBLICATIONS:
                self._answered(one)
            elif one.method == wire.CHANNEL_CLOSE:
                return one
        return None

    def _answered(self, one: wire.Arrived) -> None:
        """What RabbitMQ says of what we have published."""
        if one.method == wire.BASIC_RETURN:
            for posted in dict.fromkeys(self._outbox.values()):
                for publication in posted.publications:
                    if is_same(publication, one):
                        posted.refused.append(publication)
                        return
            return
        number = int.from_bytes(one.arguments[:8], "big")
        multiple = one.arguments[8] & 1
        for answered in [other for other in self._outbox if other <= number] if multiple else [number]:
            if answered not in self._outbox:  # only a mention
                continue
            posted = self._outbox.pop(answered)
            posted.waiting -= 1
            if one.method == wire.BASIC_NACK:
                posted.refused.append(posted.publications[answered - posted.first])
            if posted.waiting:
                continue
            if posted.refused:
                self._declared.clear()
                self._refused.append((time.monotonic() + REPEAT_SECONDS, posted))
            else:
                self.acknowledge(posted.tags)


def closing_words(one: wire.Arrived) -> tuple[int, str]:
    """Why the server has closed a channel."""
    return int.from_bytes(one.arguments[:2], "big"), wire.read_short(one.arguments, 2)[0]


_NOTHING_TO_SAY = frozenset((wire.BASIC_QOS_OK, wire.CHANNEL_OPEN_OK))
_ABOUT_PUBLICATIONS = frozenset((wire.BASIC_ACK, wire.BASIC_NACK, wire.BASIC_RETURN))
