"""What a worker takes from RabbitMQ, for all its processes: kept by the supervisor.

RabbitMQ gives a message to a connection, and takes it back when that connection ends; nobody else can acknowledge it. So the connection belongs to the
supervisor, which outlives its processes, runs no user code and so never misses a heartbeat; its processes ask it over a local socket. When a process dies, the
supervisor still holds what it was running; when the supervisor dies, RabbitMQ has everything back at once.

    buffered    given by RabbitMQ, wanted by no process yet. While nobody asks (all run something long) nothing more is taken, and what is buffered is given back
    held        reserved by a process
    in custody  held for longer than `custody_seconds`: acknowledged, with a copy in a queue of the node's own, so that the broker's `consumer_timeout` never cuts a
                task off. When the node dies, its copies go back to their queues by themselves
    lost        held, but the connection that held it is gone. RabbitMQ gives it to whoever comes first; mostly to us, a moment later, and then it is held again.
                Whoever settles it within that moment is told to try again; after it, that it belongs to somebody else

Given back means: published again, with its counts, to the queue `….celeriac.returned`, which is read first, and then acknowledged.

The parts: rabbitmq_ledger.py knows whose each message is, rabbitmq_lines.py keeps the connections, rabbitmq_desk.py the sockets of the processes. Here is what is
done with them: who is given what and when, what is given back, custody, notes and letters. While it serves processes it waits for nothing.

The broker's own count of deliveries (`x-delivery-count`) tells that a message was given to somebody and came back, and not that anybody started it: it grows when a
connection is lost with it in a buffer, and even when a subscription is cancelled while it is on its way. So it counts as an interruption. From then on the
message is handed out alone, and in custody from the start: if its holder dies then, the copy says that this was a crash.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from ..contracts.mailbox import Letter, Node
from ..core.clock import Clock
from ..core.errors import EngineUnavailable, NodeLost
from ..core.ids import new_id
from ..core.message import Holder
from ..core.trouble import Trouble
from . import rabbitmq_wire as wire
from .network import readable
from .rabbitmq_desk import Answer, Client, Reception, Wish
from .rabbitmq_held import Held, addressed, read_slip, readdressed, relabelled
from .rabbitmq_ledger import Ledger
from .rabbitmq_lines import Consumer, Lines, closing_words
from .rabbitmq_sender import LETTER_SECONDS, LOCAL_SECONDS, MANY_DELIVERIES, Publication, Sender, as_error, noted

QUIET_SECONDS = 0.05
"""Nobody has asked for so long: what is buffered would wait behind something long. Twice as long after each time that it was given back for this, up to …"""
LONGEST_QUIET_SECONDS = 1.0
"""… so that a machine that is only slow does not carry messages to and fro."""
PATIENCE_SECONDS = 0.02
"""So long a process that asks is kept waiting at least, for what RabbitMQ may be about to give; it takes "nothing" as a sign that it is idle."""
CALM_SECONDS = 10.0
"""After so long without it, the shortest time holds again."""
ROOM_SECONDS = 1.0
"""So long after a connection was lost, RabbitMQ has noticed it, mostly."""
RETURN_SECONDS = 3.0
"""So long after a new connection is made, what the last one held may come back to us."""
PROMISE_SECONDS = 2.0
"""How long a process waits at most for the custody of what it gets."""
SLEPT_SECONDS = 2.0
"""A supervisor that looks at its connection as seldom as this was stopped, or its machine was."""
BEGIN_SECONDS = 20.0
"""So long the server may take to begin to give of a queue."""
LINGER_SECONDS = 0.003
"""So long who wants many is kept waiting while there are several: each answer costs the same, however many it brings. One alone is not part of a stream."""
MAILBOXES = 16
"""So many that belong to no node here, but wait for an answer, say, are listened to at once; those that were opened before have had theirs."""
SLICE_SECONDS = 0.02
FOLLOW_SECONDS = 1.0
"""So often a stream that is away is looked for."""
logger = logging.getLogger("celeriac.engines.rabbitmq")
_json = msgspec.json.Decoder().decode
_decode_letter = msgspec.json.Decoder(tuple[float, Letter]).decode


class Intake:
    """The consuming side of an engine."""

    def __init__(
        self,
        sender: Sender,
        clock: Clock,
        *,
        heartbeat_seconds: int = 10,
        custody_seconds: float = 30.0,
        revokes_expire_seconds: float = 10800,
    ) -> None:
        self.sender = sender
        self.topology = topology = sender.topology
        self.clock = clock
        self.custody_seconds = custody_seconds
        self.revokes_expire_seconds = revokes_expire_seconds
        self.lock = threading.RLock()
        self.lines = Lines(sender, heartbeat_seconds, begin=self._begin, lose=self._lose)
        self.ledger = Ledger(topology, clock, self.lines.acknowledge)
        self.reception = Reception(self._act)
        self.nodes: dict[str, tuple[Node, float]] = {}
        self.paused: dict[str, str] = {}
        self.letters: dict[str, deque[Letter]] = {}
        self._pumped_at = 0.0
        self._queues: set[str] = set()
        """Of which we have been given messages."""
        self._windows: dict[str, int] = {}
        """How much of each queue the lost connection could be given."""
        self._room_at = math.inf
        """When room is made for what it held."""
        self._waiting: dict[str, int] = {}
        """How many callers in this process wait for each queue."""
        self._asked_at = 0.0
        self._quiet_seconds = QUIET_SECONDS
        self._given_back_at = 0.0
        self._custody = ""
        self._custody_at = 0.0
        self._follows = False
        self._follow_at = 0.0
        self._marks: set[str] = set()
        self._named: set[str] = set()
        """Queues whose names are among the notes."""
        self._blindness = Trouble(logger, f"The stream {topology.own('notes')!r}, which tells of pauses and revokes,")

    # -- nodes -------------------------------------------------------------------------------------------------------

    def register(self, node: Node, until: float, heartbeat_seconds: int) -> None:
        with self.lock:
            if heartbeat_seconds < self.lines.heartbeat_seconds:
                self.lines.heartbeat_seconds = heartbeat_seconds
                self.lines.disconnect()
            self.lines.connected(time.monotonic() + LOCAL_SECONDS)
            self.nodes[node.id] = (node, until)
            if node.pid == os.getpid():
                self.reception.open(node.id)

    def renew(self, node: str, until: float, note: dict[str, Any]) -> bool:
        """The node lives, for so long at least, and says so. Does not wait for the confirmation. False: it is not registered any more."""
        with self.lock:
            known = self.nodes.get(node)
            if known is not None and known[1] <= self.clock.monotonic():
                self._pump()  # a connection that was lost since then has taken the node with it
                known = self.nodes.get(node)
            if known is None:
                return False
            self.lines.mention(noted(self.topology, "nodes", note))
            self.nodes[node] = (known[0], until)
            return True

    def give_up(self, node: str, *, crashed: bool) -> list[str]:
        """The node is gone: what it held is ready again. Returns the ids."""
        with self.lock:
            ids = self._begin_to_give_up(node, crashed=crashed)
            if ids:
                self._await(lambda: not self.lines.posting(), time.monotonic() + LOCAL_SECONDS)
            return ids

    def _begin_to_give_up(self, node: str, *, crashed: bool) -> list[str]:
        self._forget_node(node)
        mine = self.ledger.of_node(node)
        ours = [held for held in mine if not held.lost]
        publications = [
            readdressed(held, self.topology, crashes=held.crashes + crashed, interruptions=held.interruptions + (not crashed))
            for held in ours
        ]
        self.ledger.let_go(mine)
        self.lines.post(publications, [held.tag for held in ours if held.tag is not None])
        for client in self.reception.clients.values():
            if client.holder is not None and client.holder.node == node:
                client.wants = None
        return [held.id for held in ours]

    def _forget_node(self, node: str) -> None:
        self.nodes.pop(node, None)
        self.reception.shut(node)

    def _require(self, node: str) -> None:
        if node not in self.nodes:
            raise NodeLost(node)

    def close(self) -> None:
        with self.lock:
            with suppress(EngineUnavailable):
                self._give_back_buffer()
            self.reception.close()
            if self.lines.connection is not None:
                with suppress(EngineUnavailable):
                    # Copies of what is done must not stay in custody: they would come back as if their holder had died.
                    self._await(self._has_settled_down, time.monotonic() + 2.0)
            self.lines.close()
            self.ledger.forget()
            self.letters.clear()
            self._follows = False

    def forget(self) -> None:
        """In a child of the process that opened this: closes our copies, without a word to the server."""
        self.lines.forget()
        self.reception.forget()

    # -- reserving, in this process ------------------------------------------------------------------------------------

    def reserve(self, queues: Sequence[str], limit: int, holder: Holder) -> list[Held]:
        """Looks, takes, and leaves nothing buffered."""
        with self.lock:
            self._require(holder.node)
            if limit <= 0 or not queues:
                return []
            deadline = time.monotonic() + LOCAL_SECONDS
            self.sync(deadline)
            wanted = [queue for queue in dict.fromkeys(queues) if queue not in self.paused]
            for last in (False, False, True):
                try:
                    if self.ledger.count(wanted) < limit:
                        self._look(wanted, limit, deadline)
                    break
                except EngineUnavailable as problem:
                    # RabbitMQ ends a connection that reads a queue which somebody else is just making.
                    if last or self.ledger.held or "INTERNAL_ERROR" not in str(problem):
                        raise
                    self.lines.disconnect()
                    time.sleep(0.1)
            taken = self.ledger.take(wanted, limit, holder)
            if not self._waiting and not self._demand():
                self._give_back_buffer(wanted)
            if taken and taken[0].doubtful:
                self._copy_into_custody(taken)
            self._await(self._has_settled_down, deadline)
            return taken

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        """True as soon as something is buffered."""
        deadline = time.monotonic() + timeout_seconds
        wanted = list(dict.fromkeys(queues))
        with self.lock:
            self.sync(time.monotonic() + LOCAL_SECONDS)
            for queue in wanted:
                self._waiting[queue] = self._waiting.get(queue, 0) + 1
        try:
            first = True
            while True:
                with self.lock:
                    connection = self.lines.connected(time.monotonic() + LOCAL_SECONDS)
                    free = [queue for queue in wanted if queue not in self.paused]
                    if first and free and not self.ledger.count(free):
                        self._look(free, 1, time.monotonic() + LOCAL_SECONDS, keep=True)
                        first = False
                    for queue in free:
                        self._consume(queue, 1)
                    self._pump()
                    if self.ledger.count(free):
                        return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                readable([connection.fileno()], min(left, SLICE_SECONDS))
        finally:
            with self.lock, suppress(EngineUnavailable):
                done = []
                for queue in wanted:
                    self._waiting[queue] -= 1
                    if not self._waiting[queue]:
                        del self._waiting[queue]
                        done.append(queue)
                self._stop_consuming(done, time.monotonic() + LOCAL_SECONDS)

    def _look(self, queues: Sequence[str], limit: int, deadline: float, *, keep: bool = False) -> None:
        """Until as much as wanted is buffered, or there is nothing more: RabbitMQ says so itself."""
        connection = self.lines.connected(deadline)
        for queue in queues:
            self._consume(queue, limit)
        names = [name for queue in queues for name in (self.topology.queue(queue), self.topology.returned(queue))]
        while self.ledger.count(queues) < limit:
            ready = 0
            connection.send(b"".join([wire.declare_queue(3, name, passive=True) for name in names]), deadline)
            for _ in names:
                ready += wire.counted(connection.await_one(3, (wire.QUEUE_DECLARE_OK,), deadline))[1]
            # What was given to our channel before these answers has come before this one.
            connection.ask(1, wire.frame(1, wire.CHANNEL_FLOW, b"\x01"), wire.CHANNEL_FLOW_OK, deadline)
            self._digest()
            if not ready:
                break
            if not connection.read(min(deadline, time.monotonic() + 0.01)) and time.monotonic() > deadline:
                break
            self._digest()
        if not keep:
            self._stop_consuming([queue for queue in queues if queue not in self._waiting], deadline)

    def _consume(self, queue: str, prefetch: int) -> None:
        self.lines.consume(queue, prefetch)
        self._queues.add(queue)

    def _stop_consuming(self, queues: Iterable[str], deadline: float) -> None:
        """Nothing more comes of these queues when this returns."""
        self.lines.begin_to_stop(queues)
        self._await(lambda: not self.lines.stopping(), deadline)

    # -- settling, in this process -----------------------------------------------------------------------------------------

    def stale(self, leases: Iterable[tuple[str, int, str, int]]) -> list[str]:
        with self.lock:
            return self.ledger.stale(leases)

    def acknowledge(self, leases: Iterable[tuple[str, int, str, int]]) -> list[str]:
        with self.lock:
            return self.ledger.settle(leases)

    def leave(self, leases: Sequence[tuple[str, int, str, int]]) -> list[str]:
        """Waits until RabbitMQ has read the acknowledgements."""
        refused: list[str] = []

        def left() -> bool:
            with suppress(EngineUnavailable):
                refused.extend(self.ledger.leave(leases, self.lines.ask))
                return True
            return False

        with self.lock:
            self._await(left, time.monotonic() + LOCAL_SECONDS)
        return refused

    def holdings(self, node: str, process: int | None = None) -> list[Held]:
        with self.lock:
            return self.ledger.holdings(node, process)

    def lost(self, node: str, process: int) -> list[str]:
        with self.lock:
            return self.ledger.lost(node, process)

    # -- for the processes of this node ----------------------------------------------------------------------------------------

    def _act(self, client: Client, verb: str, *arguments: Any) -> Answer | None:
        if not self.lines.lives():
            raise EngineUnavailable("The worker has no connection to RabbitMQ just now.")
        match verb:
            case "exchange":
                return self._exchange(client, *arguments)
            case "settle":
                return ("ok", self.ledger.settle(arguments[0]), [])
            case "leave":
                return ("ok", self.ledger.leave(arguments[0], self.lines.ask), [])
            case "stale":
                return ("ok", self.ledger.stale(arguments[0]), [])
            case _:
                node, process = arguments
                return ("ok", [], self.ledger.holdings(node, process))

    def _exchange(
        self, client: Client, node: str, process: int, leases: Any, queues: Sequence[str], limit: int, wait_seconds: float
    ) -> Answer | None:
        """What is done, and what is next: at once when it is buffered. RabbitMQ is told to give as much as all processes want."""
        client.holder = Holder(node, process)
        self._require(node)
        refused = self.ledger.settle(leases)
        if limit <= 0:
            return ("ok", refused, [])
        now = self._asked_at = time.monotonic()
        client.asks = Wish(queues, limit, refused, now, now + max(PATIENCE_SECONDS, wait_seconds))
        client.wants = limit, queues
        free = [queue for queue in queues if queue not in self.paused] if self.paused else queues
        taken = self.ledger.take(free, limit, client.holder) if self.ledger.count(free) >= limit else []
        with suppress(EngineUnavailable):  # the next connection begins with it
            self._steer()
        return self._handed(client, refused, taken)

    def _demand(self) -> list[tuple[int, Sequence[str]]]:
        return [client.wants for client in self.reception.clients.values() if client.wants is not None]

    def _steer(self) -> None:
        demand = self._demand()
        wanted: dict[str, int] = {}
        for limit, queues in demand:
            for queue in queues:
                wanted[queue] = wanted.get(queue, 0) + (2 * limit if limit >= 4 else limit)
        for queue, count in wanted.items():
            if queue not in self.paused:
                consumer = self.lines.open.get((queue, "queue"))
                if consumer is None or consumer.prefetch < count:
                    self._consume(queue, count if count <= 3 * len(demand) else 2 * count)

    def _answer_those_who_ask(self, now: float) -> None:
        for client in list(self.reception.clients.values()):
            if client.promised is not None:
                if now - client.promised[1][0].taken_at > PROMISE_SECONDS:
                    self._keep_promise(client.promised[1][0])  # its crash may not be counted then
                continue
            if client.asks is None or client.holder is None:
                continue
            asks = client.asks
            free = [queue for queue in asks.queues if queue not in self.paused]
            there = self.ledger.count(free)
            if there == 1 or there >= asks.limit or (there and now - asks.since >= LINGER_SECONDS):
                answer = self._handed(client, asks.refused, self.ledger.take(free, asks.limit, client.holder))
                if answer is not None:
                    self.reception.answer(client, answer)
            elif now >= asks.until:
                client.asks = None
                self.reception.answer(client, ("ok", asks.refused, []))

    def _handed(self, client: Client, refused: list[str], taken: list[Held]) -> Answer | None:
        """The answer of who gets these; None: it gets one later."""
        if not taken:
            return None
        if taken[0].doubtful:
            with suppress(EngineUnavailable):  # then its crash will not be counted
                self._copy_into_custody(taken)
                client.promised = refused, taken
                return None
        client.asks = None
        return ("ok", refused, taken)

    def _keep_promise(self, held: Held) -> None:
        for client in list(self.reception.clients.values()):
            if client.promised is not None and held in client.promised[1]:
                refused, taken = client.promised
                client.promised = client.asks = None
                self.reception.answer(client, ("ok", refused, taken))

    def _pause_seconds(self) -> float:
        asked = [client.asks.until for client in self.reception.clients.values() if client.asks is not None]
        if self.ledger.count(self.ledger.buffer):
            return LINGER_SECONDS if asked else self._quiet_seconds
        return max(LINGER_SECONDS, min(asked) - time.monotonic()) if asked else 1.0  # who waits for custody may have asked long ago

    def _tick(self) -> None:
        """What the passing of time asks for."""
        now = time.monotonic()
        self.reception.answer_deferred()
        self.lines.check_confirmations(now)
        self._check_beginnings(now)
        self.lines.post_again(now)
        self._answer_those_who_ask(now)
        if self._surplus(now):
            self.lines.begin_to_stop([queue for queue, kind in self.lines.open if kind == "queue"])
            if not self.lines.stopping():
                self._give_back_buffer()
                self._quiet_seconds = min(LONGEST_QUIET_SECONDS, 2 * self._quiet_seconds)
                self._given_back_at = now
        elif now - self._given_back_at > CALM_SECONDS:
            self._quiet_seconds = QUIET_SECONDS
        self._follow_again(now)
        if self._room_at <= now < self.ledger.lost_until:
            self._make_room()
        if now - self._custody_at >= 1.0:
            self._custody_at = now
            self._name_queues()
            self._copy_into_custody(self.ledger.due_for_custody(self.custody_seconds, self.nodes))

    def _surplus(self, now: float) -> bool:
        """Something is buffered, and nobody has asked for a while: all processes run something long, and do not just wait for what a lost connection held."""
        return (
            bool(self.ledger.count(self.ledger.buffer))
            and now >= self.ledger.lost_until
            and not self._waiting
            and now - self._asked_at > self._quiet_seconds
            and not any(client.asks is not None for client in self.reception.clients.values())
        )

    def _make_room(self) -> None:
        """For what the lost connection held. RabbitMQ may notice its end after it has filled the new one with others, which nobody takes before that is settled.

        Once: the others fill what room there is, so whoever made room for them too would have the whole queue, by hundreds of subscriptions.
        """
        self._room_at = math.inf
        held = self.ledger.held.values()
        for queue in {one.queue for one in held if one.lost} - self.paused.keys():
            self._consume(queue, self.ledger.count([queue]) + sum(one.queue == queue for one in held))

    def _check_beginnings(self, now: float) -> None:
        """RabbitMQ does nothing else for a channel while it waits for the leader of a queue that we want to read."""
        for consumer in self.lines.consumers.values():
            if consumer.asked_at and not consumer.begun and now - consumer.asked_at > BEGIN_SECONDS:
                if consumer.kind == "notes":
                    self._blindness.seen(EngineUnavailable("RabbitMQ does not begin to give of it."))
                    continue
                name = self.topology.name(consumer.kind, consumer.queue)
                self.lines.disconnect()
                raise EngineUnavailable(
                    f"RabbitMQ does not begin to give of {name!r}: the queue has no leader. If it stays so, see docs/engines/rabbitmq.md, 'A server that was killed too early'."
                )

    # -- the connection: new, read, lost -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """It is new. What was being listened to is listened to again."""
        if not self._remembered():
            self._forget_all()
        if self.ledger.lost_until:
            now = time.monotonic()
            self.ledger.lost_until, self._room_at = now + RETURN_SECONDS, now + ROOM_SECONDS
        self._follow_at = 0.0
        self._follow_again(time.monotonic())
        if self._custody:
            self._open_custody()
        for address in self.letters:
            self.lines.read_letters(address)
        # As much as the last one had been given: what is held is among it, and those who hold it ask for nothing new before they have settled it.
        for queue, prefetch in list(self._windows.items()):
            self._consume(queue, prefetch)
        self._windows.clear()

    def _remembered(self) -> bool:
        """The server knows the queues from which it has given to us before."""
        deadline = time.monotonic() + LOCAL_SECONDS
        try:
            with self.sender.link(deadline) as link:
                for queue in self._queues:
                    link.risk(wire.declare_queue(2, self.topology.returned(queue), passive=True), wire.QUEUE_DECLARE_OK, deadline)
        except wire.Refused as refused:
            return refused.code != wire.NOT_FOUND
        return True

    def _lose(self, windows: dict[str, int], answered: int) -> None:
        """It is gone."""
        self.ledger.answered(answered)
        self._room_at = math.inf
        if self._demand():
            self._windows.update(windows)
        self._named.clear()
        unclaimed: list[Held] = []
        for client in self.reception.clients.values():
            if client.promised is not None:  # not its yet, and the original is with the broker
                unclaimed += client.promised[1]
                client.promised = None
        self.ledger.lose(unclaimed)

    def _forget_all(self) -> None:
        """All that we held is gone, or is with others for good. Whoever asks for our nodes hears that they are not registered."""
        self._queues.clear()
        for node in list(self.nodes):
            self._forget_node(node)
        self.ledger.forget()

    def _pump(self) -> None:
        """Reads what has come, without waiting."""
        self.lines.connected(time.monotonic() + LOCAL_SECONDS)
        try:
            self.lines.read()
            self._digest()
            self._pumped_at = time.monotonic()
        except EngineUnavailable:
            self.lines.disconnect()
            slept = time.monotonic() - self._pumped_at > SLEPT_SECONDS  # else the loss of a connection is seen at once
            if slept and any(until <= self.clock.monotonic() for _, until in self.nodes.values()):
                self._forget_all()  # others have had time to run all that we held
            raise

    def _await(self, done: Callable[[], bool], deadline: float) -> None:
        """Reads until it is so. For those who may wait: what serves processes may not."""
        connection = self.lines.connected(deadline)
        while not self._has_come(done):
            if time.monotonic() >= deadline:
                self.lines.disconnect()
                raise EngineUnavailable(f"RabbitMQ at {connection.address} did not answer in time.")
            readable(self.lines.descriptors(), self.lines.pause_seconds(deadline - time.monotonic()))
            self._pump()
            if connection is not self.lines.connection:
                raise EngineUnavailable("The connection to RabbitMQ was lost meanwhile.")

    def _has_come(self, done: Callable[[], bool]) -> bool:
        self._digest()
        self.lines.post_again(time.monotonic())
        return done()

    def _has_settled_down(self) -> bool:
        """All that was posted is confirmed, and what is to be in custody is there."""
        return not (self.lines.posting() or self.ledger.copies)

    def _digest(self) -> None:
        """What becomes of all that was read."""
        for consumer, one in self.lines.arrivals():
            if one.method == wire.BASIC_DELIVER:
                self._delivered(consumer, one)
            elif consumer.kind == "notes":
                if one.method == wire.CHANNEL_CLOSE:
                    self._blindness.seen(EngineUnavailable(closing_words(one)[1]))
                else:
                    self._blindness.over()
            elif consumer.kind == "custody" and one.method != wire.BASIC_CONSUME_OK:
                self._lose_custody()
        self.ledger.answered(self.lines.answered)
        if self.ledger.not_due:
            self._put_off()
        if self.ledger.worn:
            worn = self.ledger.worn.copy()
            self.ledger.worn.clear()
            self._give_back([held for held in worn if held.holder is None])
            self._copy_into_custody([held for held in worn if held.holder is not None])

    def _delivered(self, consumer: Consumer, one: wire.Arrived) -> None:
        _, tag, redelivered, _, _ = wire.delivered(one)
        match consumer.kind:
            case "queue" | "returned":
                held, wait = read_slip(one.properties, one.body, consumer.queue, tag, redelivered, self.clock.time())
                self.ledger.receive(held, wait, consumer.kind)
            case "custody":
                self._came_into_custody(one, tag)
            case "letters":
                self._came(one.body, consumer.queue)
            case _:
                self._noted(_json(one.body))
                self.lines.note_was_read(tag)

    # -- giving back: of what nobody has started ---------------------------------------------------------------------------------

    def _put_off(self) -> None:
        """Not due: it waits in the broker."""
        waiting = self.ledger.not_due.copy()
        self.ledger.not_due.clear()
        publications = [
            addressed(
                self.topology, "queue", held.queue, self.topology.queue(held.queue),
                relabelled(held.properties, {"celeriac-since": held.since + wait, "celeriac-left": 0.0}), held.body, wait,
            )
            for held, wait in waiting
        ]  # fmt: skip
        self.lines.post(publications, [held.tag for held, _ in waiting if held.tag is not None])

    def _give_back_buffer(self, queues: Iterable[str] | None = None) -> None:
        self._give_back(self.ledger.empty(list(self.ledger.buffer) if queues is None else queues))

    def _give_back(self, spare: Sequence[Held]) -> None:
        publications = [readdressed(held, self.topology) for held in spare]
        self.lines.post(publications, [held.tag for held in spare if held.tag is not None])

    # -- custody -------------------------------------------------------------------------------------------------------------------

    def _copy_into_custody(self, messages: Sequence[Held]) -> None:
        """A copy to a queue of our own. When it comes to us from there, the original is acknowledged: the broker's clock, and its count, begin anew."""
        if not messages:
            return
        self._custody = self._custody or self.topology.own(f"held.{new_id()}")
        if not self.lines.has_custody():
            self._open_custody()
        publications = []
        for held in messages:
            held.taken_at = time.monotonic()
            counts = [held.crashes + 1, held.interruptions, held.token, 1]
            mark = {"celeriac-counts": counts, "celeriac-since": held.since, "id": held.id}
            properties = relabelled(held.properties, mark)
            back = self.topology.returned(held.queue)
            publications.append(Publication(self._custody, back, properties, held.body, (("returned", held.queue),)))
        self.lines.post(publications)
        self.ledger.copies.update({held.id: held.token for held in messages})

    def _open_custody(self) -> None:
        deadline = time.monotonic() + LOCAL_SECONDS
        arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": 10_000,
            "x-expires": 600_000,
            "x-overflow": "reject-publish",
            "x-dead-letter-strategy": "at-least-once",
            "x-dead-letter-exchange": "",
            "x-delivery-limit": MANY_DELIVERIES,
        }
        name = self._custody
        with self.sender.link(deadline) as link:
            try:
                link.risk(wire.declare_queue(2, name, arguments), wire.QUEUE_DECLARE_OK, deadline)
                link.risk(wire.declare_exchange(2, name, "fanout", auto_delete=True), wire.EXCHANGE_DECLARE_OK, deadline)
                link.risk(wire.bind_queue(2, name, name, ""), wire.QUEUE_BIND_OK, deadline)
            except wire.Refused as refused:
                raise as_error(refused, name) from refused
        self.lines.hold_custody(name, deadline)

    def _lose_custody(self) -> None:
        """Somebody has deleted the queue. Another one is made for what has to be in it: RabbitMQ may still be at the end of this one, and say that it is there."""
        logger.warning("The queue %r, in which RabbitMQ keeps what runs here for long, was deleted; another one is made.", self._custody)
        self._custody = ""
        self.ledger.lose_custody()
        self._custody_at = 0.0

    def _came_into_custody(self, one: wire.Arrived, tag: int) -> None:
        ledger = self.ledger
        headers, _ = wire.read_properties(one.properties)
        id, token = str(headers["id"]), headers["celeriac-counts"][2]
        if ledger.copies.get(id) == token:
            del ledger.copies[id]
        held = ledger.held.get(id)
        if held is not None and held.token == token:
            ledger.came_into_custody(held, tag)
            self._keep_promise(held)
        elif ledger.void.pop(id, None) == token or ledger.has_settled(id, token):
            self.lines.acknowledge([tag])  # the original is with the broker, or it was settled while this was on its way
        else:  # nobody's any more: its holder was refused
            counts = [headers["celeriac-counts"][0] - 1, headers["celeriac-counts"][1] + 1, token]
            properties = relabelled(one.properties, {"celeriac-counts": counts})
            self.lines.post([Publication("", wire.delivered(one)[4], properties, one.body)], [tag])

    # -- notes: what everybody has to know -----------------------------------------------------------------------------------

    def sync(self, deadline: float) -> None:
        """All notes that were confirmed before this call are known when it returns; those to come are followed."""
        mark = new_id()
        self._marks.add(mark)
        self.sender.note("notes", {"mark": mark}, deadline)
        self.lines.connected(deadline)
        if "notes" not in self.lines.consumers:
            self._follow()
        self._await(lambda: mark not in self._marks, deadline)

    def _follow(self) -> None:
        """All notes are read, from the first on; and what is noted from now on."""
        self._follows = True
        self.lines.read_notes()

    def _follow_again(self, now: float) -> None:
        """After the connection was lost, or the stream. What we know of pauses and revokes holds meanwhile, and nobody waits for more (docs/decisions/0024)."""
        if not self._follows or "notes" in self.lines.consumers or now < self._follow_at:
            return
        self._follow_at = now + FOLLOW_SECONDS
        try:
            self._follow()
        except EngineUnavailable as problem:
            if not self.lines.lives():
                raise
            self._blindness.seen(problem)

    def _name_queues(self) -> None:
        """Who made them could not, when the stream was away."""
        unnamed = self._queues - self._named - self.topology.queues.keys()
        if unnamed and self.lines.reads_notes():
            self._named |= unnamed
            self.lines.post([noted(self.topology, "notes", {"queue": queue}) for queue in unnamed])

    def _noted(self, note: dict[str, Any]) -> None:
        if "mark" in note:
            self._marks.discard(note["mark"])
        elif "queue" in note:
            self._named.add(note["queue"])
        elif "pause" in note:
            self.paused.update(dict.fromkeys(note["pause"], note["by"]))
            self.lines.begin_to_stop(note["pause"])
            self._give_back_buffer(note["pause"])
        elif "resume" in note:
            for queue in note["resume"]:
                self.paused.pop(queue, None)
        elif "revoke" in note:
            self._note_revokes(note)
        elif note.get("gone") in self.nodes:
            self._begin_to_give_up(note["gone"], crashed=True)

    def _note_revokes(self, note: dict[str, Any]) -> None:
        until = note["at"] + self.revokes_expire_seconds
        if until < self.clock.time():
            return
        for id in note["revoke"]:
            self.ledger.revoked[id] = until
            held = self.ledger.held.get(id)
            if held is not None and held.holder is not None and note.get("terminate"):
                letter = Letter(method="terminate", arguments={"task_id": id, "signal": note["terminate"]})
                self.letters.setdefault(held.holder.node, deque()).append(letter)

    # -- letters -------------------------------------------------------------------------------------------------------------

    def collect(self, address: str, timeout_seconds: float) -> list[Letter]:
        """The letters of a mailbox. While it waits, the processes of this node are served."""
        try:
            return self._collect(address, timeout_seconds)
        except EngineUnavailable as problem:
            with self.lock:
                self._serve_meanwhile(problem)
            raise

    def _collect(self, address: str, timeout_seconds: float) -> list[Letter]:
        deadline = time.monotonic() + timeout_seconds
        with self.lock:
            self.lines.connected(time.monotonic() + LOCAL_SECONDS)
            if address not in self.letters:
                there = self.sender.take_letters(address, time.monotonic() + LOCAL_SECONDS)
                self.lines.read_letters(address)
                for body in there:
                    self._came(body, address)
                self.letters.setdefault(address, deque())
                self._leave_mailboxes()
                if address in self.nodes and not self._follows:
                    self.sync(time.monotonic() + LOCAL_SECONDS)
        while True:
            with self.lock:
                self._pump()
                self.lines.ask_if_in_doubt()
                self._tick()
                box = self.letters.get(address)
                if box:
                    self.letters[address] = deque()
                    return list(box)
                descriptors = [*self.lines.descriptors(), *self.reception.descriptors()]
                pause = self._pause_seconds()
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            ready = readable(descriptors, min(left, pause))
            if ready:
                with self.lock:
                    self.reception.serve(ready)

    def _serve_meanwhile(self, problem: EngineUnavailable) -> None:
        """RabbitMQ is away."""
        self.reception.serve(readable(self.reception.descriptors(), 0.0))
        self.reception.excuse(problem)
        self._answer_those_who_ask(time.monotonic())

    def _came(self, body: bytes, address: str) -> None:
        posted_at, letter = _decode_letter(body)
        if posted_at > self.clock.time() - LETTER_SECONDS:
            self.letters.setdefault(address, deque()).append(letter)

    def _leave_mailboxes(self) -> None:
        """They expire then."""
        old = [address for address in self.letters if address not in self.nodes][:-MAILBOXES]
        self.lines.leave_letters(old)
        for address in old:
            del self.letters[address]
