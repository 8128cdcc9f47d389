"""Whose the messages are that RabbitMQ has given to a supervisor: nobody's yet (buffered), a process's (held), done, or lost with their connection. No I/O.

What of them is to be acknowledged it says to `acknowledge`, which says it to RabbitMQ. Nothing here is locked: the intake (rabbitmq_intake.py) does that.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from operator import attrgetter

from ..core.clock import Clock
from ..core.errors import EngineUnavailable
from ..core.message import Holder
from . import rabbitmq_wire as wire
from .rabbitmq_held import Held
from .rabbitmq_sender import Topology

REMEMBERED = 10_000
"""So many settled messages are remembered, lest they run again when a lost connection has swallowed their acknowledgements."""
WORN_RETURNS = 10
"""What has come back so often is published anew, before it is dropped: RabbitMQ 4 allows 20 returns, unless its queue says otherwise, and counts what was only buffered too."""


class Unread(EngineUnavailable):
    """RabbitMQ has yet to answer what it was asked after an acknowledgement. It does, or the connection is lost."""

    def __init__(self) -> None:
        super().__init__("RabbitMQ has not answered yet since a message was acknowledged.")


class Ledger:
    """All that RabbitMQ has given, and what became of it."""

    def __init__(self, topology: Topology, clock: Clock, acknowledge: Callable[[Sequence[int]], None]) -> None:
        self.topology = topology
        self.clock = clock
        self.acknowledge = acknowledge
        self.held: dict[str, Held] = {}
        self.buffer: dict[str, list[Held]] = {}
        self.revoked: dict[str, float] = {}
        """Until when each is."""
        self.not_due: list[tuple[Held, float]] = []
        """To be put off, for so many seconds."""
        self.worn: list[Held] = []
        """To be published anew."""
        self.copies: dict[str, int] = {}
        """Ids and tokens of what is on its way into custody."""
        self.void: dict[str, int] = {}
        """... and of what was, when the connection was lost before anybody had it."""
        self.lost_until = 0.0
        """Until then, what is lost may come back."""
        self.leaving: dict[str, tuple[Held, int]] = {}
        """What is acknowledged before it runs, with the number of the question to RabbitMQ that follows the acknowledgement."""
        self._done: dict[str, tuple[int, float, bool]] = {}
        """Of what was settled of late: token, since when it had waited, and whether it was a publication that was repeated. Its acknowledgement may be lost."""
        self._successors: dict[str, Held] = {}
        """Published by the settlement of a message that we still hold: its acknowledgement is on its way to us."""
        self._arrivals = 0

    # -- given by RabbitMQ → buffered ----------------------------------------------------------------------------------------

    def receive(self, held: Held, wait: float, kind: str) -> None:
        """`kind`: of the queue that it comes from. `wait`: for so many seconds it is not due."""
        known = self.held.get(held.id)
        if known is not None and held.base >= known.token and not held.copy:
            # Not the same once more, but what its settlement has published (a retry, say), before the acknowledgement has come to us.
            held.place = self._place(held, kind)
            if known.lost:
                self.buffer.setdefault(held.queue, []).append(held)
            else:
                self._succeeds(held)
        elif known is not None:
            if known.lost or known.tag is None:  # our own, from before the connection was lost: its task still runs
                known.tag, known.lost, known.kept = held.tag, False, False
                if held.returns >= WORN_RETURNS:
                    self.worn.append(known)
            else:
                self._decline(held)
        elif self._is_done(held):
            self._decline(held)
        elif wait > 0.0:
            self.not_due.append((held, wait))
        elif held.returns >= WORN_RETURNS:
            self.worn.append(held)
        else:
            held.place = self._place(held, kind)
            self.buffer.setdefault(held.queue, []).append(held)

    def count(self, queues: Iterable[str]) -> int:
        """How many of them are buffered."""
        return sum(len(self.buffer.get(queue) or ()) for queue in queues)

    def empty(self, queues: Iterable[str]) -> list[Held]:
        """What was buffered of these, and is no more."""
        return [held for queue in queues for held in self.buffer.pop(queue, ())]

    def _place(self, held: Held, kind: str) -> tuple[int, float, int, float]:
        """By priority where the queue has priorities; then by how long it has waited. In the same millisecond, what was given back comes first; else as RabbitMQ gives."""
        priority = 0
        given = self.topology.queues.get(held.queue)
        if given is not None and "max_priority" in given.options:
            with suppress(ValueError, IndexError, struct.error):
                priority = int(wire.read_properties(held.properties)[1].get("priority", 0))
        self._arrivals += 1
        return (-priority, round(held.since, 3), 1, self._arrivals) if kind == "queue" else (-priority, round(held.since, 3), 0, held.since)

    def _is_done(self, held: Held) -> bool:
        """It was settled here: it comes once more because a lost connection has swallowed the acknowledgement, or because its publication was repeated."""
        token, since, marked = self._done.get(held.id, _NEVER)
        if held.base >= token:
            return False
        return marked or _MARK in held.properties or (held.doubtful and held.since == since)

    def _decline(self, held: Held) -> None:
        """We have it already, or have had it."""
        if held.tag is not None:
            self.acknowledge([held.tag])

    def _succeeds(self, held: Held) -> None:
        """It is buffered as soon as what we hold under its id is settled. One of them is enough."""
        if self._successors.setdefault(held.id, held) is not held:
            self._decline(held)

    def _admit_successor(self, id: str) -> None:
        held = self._successors.pop(id, None)
        if held is not None:
            self.buffer.setdefault(held.queue, []).append(held)

    # -- buffered → held ---------------------------------------------------------------------------------------------------------

    def take(self, queues: Sequence[str], limit: int, holder: Holder) -> list[Held]:
        """The best first."""
        if len(queues) == 1:
            candidates = self.buffer.get(queues[0]) or []
        else:
            candidates = [held for queue in queues for held in self.buffer.get(queue) or ()]
        if not candidates:
            return []
        candidates = sorted(candidates, key=_by_place)
        # One whose start counts goes alone: nothing that waits behind it is counted with it.
        if any(held.doubtful for held in candidates[:limit]):
            limit = 1 if candidates[0].doubtful else next(at for at, held in enumerate(candidates) if held.doubtful)
        taken = candidates[:limit]
        if len(queues) == 1:
            self.buffer[queues[0]] = candidates[limit:]
        else:
            gone = {held.tag for held in taken}
            for queue in queues:
                if queue in self.buffer:
                    self.buffer[queue] = [held for held in self.buffer[queue] if held.tag not in gone]
        now = time.monotonic()
        wall = self.clock.time() if self.revoked else 0.0
        mine: list[Held] = []
        for held in taken:
            twin = self.held.get(held.id)
            if twin is not None and not twin.lost:  # two copies were buffered; they never run side by side here
                if held.base < twin.token:
                    self._decline(held)
                else:
                    self._succeeds(held)
                continue
            mine.append(held)
            held.token += 1
            held.holder = holder
            held.taken_at = now
            held.revoked = bool(self.revoked) and self.revoked.get(held.id, wall) > wall
            self.held[held.id] = held
        return mine

    # -- held → gone ---------------------------------------------------------------------------------------------------------------

    def stale(self, leases: Iterable[tuple[str, int, str, int]]) -> list[str]:
        """Of (id, token, node, process): the ids that these do not hold, and will not. Raises EngineUnavailable while that is not known."""
        self._await_returns(leases)
        refused: list[str] = []
        for id, token, node, process in leases:
            held = self.held.get(id)
            if held is None or held.token != token or held.holder != Holder(node, process):
                refused.append(id)
            elif id in self.leaving:  # given back now, and not acknowledged in the end, it would be there twice
                raise Unread
            elif held.lost:  # should it come to us after all, it has to be run anew: its holder is told to let go
                del self.held[id]
                refused.append(id)
                self._admit_successor(id)
        return refused

    def settle(self, leases: Iterable[tuple[str, int, str, int]]) -> list[str]:
        """They are done. Returns the ids that were refused. Raises EngineUnavailable while it is not known which; then nothing was done."""
        self._await_returns(leases)
        refused: list[str] = []
        tags: list[int] = []
        for id, token, node, process in leases:
            held = self.held.get(id)
            if held is None or held.token != token or held.holder != Holder(node, process):
                refused.append(id)
                continue
            del self.held[id]  # also when it is lost: should it come to us after all, it has to be run anew
            if held.lost:
                refused.append(id)
                self._admit_successor(id)
                continue
            self._end(held)
            if held.tag is not None:
                tags.append(held.tag)
        self.acknowledge(tags)
        return refused

    def leave(self, leases: Iterable[tuple[str, int, str, int]], ask: Callable[[], int]) -> list[str]:
        """They are done before they run. Returns the ids that were refused.

        RabbitMQ confirms no acknowledgement, but it answers in order: so `ask` asks it something after them, and returns the number of that question. Until it is
        answered (`answered`), this raises Unread, and is to be called again. When the connection is lost first, they are held still, and lost.
        """
        self._await_returns(leases)
        refused: list[str] = []
        fresh: list[Held] = []
        waits = False
        for id, token, node, process in leases:
            held = self.held.get(id)
            if held is None:
                if self._done.get(id, _NEVER)[0] != token:
                    refused.append(id)
            elif held.token != token or held.holder != Holder(node, process) or held.lost:
                refused.append(id)  # if it is lost, it stays so until its holder lets go: `lost` tells of it
            else:
                waits = True
                if id not in self.leaving and id not in self.copies:  # a copy would be somebody else's when we die
                    fresh.append(held)
        if fresh:
            self.acknowledge([held.tag for held in fresh if held.tag is not None])
            number = ask()
            for held in fresh:
                held.tag = None
                self.leaving[held.id] = held, number
        if waits:
            raise Unread
        return refused

    def answered(self, number: int) -> None:
        """RabbitMQ has answered so many questions: what was acknowledged before them has left it."""
        for id, (held, asked) in list(self.leaving.items()):
            if asked <= number:
                del self.leaving[id]
                if self.held.get(id) is held:
                    del self.held[id]
                    self._end(held)
                    self._decline(held)  # if it has come once more meanwhile

    def _end(self, held: Held) -> None:
        """It is done, and no more held."""
        self._done[held.id] = held.token, held.since, _MARK in held.properties
        if len(self._done) > 2 * REMEMBERED:
            for id in list(islice(self._done, REMEMBERED)):
                del self._done[id]
        if self._successors:
            self._admit_successor(held.id)

    def has_settled(self, id: str, token: int) -> bool:
        """That lease, or a later one."""
        return token <= self._done.get(id, _NEVER)[0]

    def holdings(self, node: str, process: int | None = None) -> list[Held]:
        """Raises EngineUnavailable while that is not known."""
        mine = [held for held in self.of_node(node) if held.holder is not None and process in (None, held.holder.process)]
        self._await_returns([(held.id, held.token, "", 0) for held in mine])
        if process is not None and any(held.id in self.leaving for held in mine):
            raise Unread
        return [held for held in mine if not held.lost]

    def lost(self, node: str, process: int) -> list[str]:
        """The ids of what was given to a process and has not come back to us since the connection was lost."""
        return [held.id for held in self.of_node(node) if held.lost and held.holder == Holder(node, process)]

    def of_node(self, node: str) -> list[Held]:
        """What was given to its processes; lost or not."""
        return [held for held in self.held.values() if held.holder is not None and held.holder.node == node]

    def let_go(self, messages: Iterable[Held]) -> None:
        """They are given back."""
        for held in messages:
            self.held.pop(held.id, None)
            if held.id in self.copies:
                self.void[held.id] = held.token
            self._admit_successor(held.id)

    # -- held for long ---------------------------------------------------------------------------------------------------------------

    def due_for_custody(self, seconds: float, nodes: Container[str]) -> list[Held]:
        """Of these nodes: what has been held for so long since it was taken, or last taken into custody; and what only we have."""
        now = time.monotonic()
        return [
            held for held in self.held.values()
            if (held.tag is None or now - held.taken_at > seconds) and not held.lost and held.id not in self.copies
            and held.id not in self.leaving and held.holder is not None and held.holder.node in nodes
        ]  # fmt: skip

    def came_into_custody(self, held: Held, tag: int) -> None:
        if held.tag is not None:
            self.acknowledge([held.tag])
        held.tag, held.lost, held.kept = tag, False, True

    def lose_custody(self) -> None:
        """Its queue was deleted, with all that was in it, and that was on its way there."""
        gone = {held.tag: held for held in self.held.values() if held.kept and held.tag is not None}
        self.acknowledge([*gone])  # there are no such messages any more, but their numbers still count
        for held in gone.values():
            held.tag = None
        for id in self.copies:
            if id in self.held:
                self.held[id].taken_at = -math.inf
        self.copies.clear()

    # -- lost ------------------------------------------------------------------------------------------------------------------------

    def lose(self, unclaimed: Iterable[Held]) -> None:
        """The connection is gone: all is the broker's again, and what is held may come back to us. Not the unclaimed: nobody has begun them."""
        self.buffer.clear()
        self.not_due.clear()
        self.worn.clear()
        self.copies.clear()
        self._successors.clear()
        for held in unclaimed:
            if self.held.pop(held.id, None) is not None:
                self.void[held.id] = held.token
        for held in self.held.values():
            held.lost = held.lost or held.tag is not None or held.id in self.leaving  # else nobody has it but us
            held.tag = None
        self.leaving.clear()
        if self.held:
            self.lost_until = math.inf

    def forget(self) -> None:
        """What is held is gone, or with others for good."""
        self.held.clear()
        self.leaving.clear()
        self.lost_until = 0.0

    def _await_returns(self, leases: Iterable[tuple[str, int, str, int]]) -> None:
        if not self.lost_until:
            return
        if time.monotonic() > self.lost_until:
            self.lost_until = 0.0
        elif any((held := self.held.get(id)) is not None and held.lost and held.token == token for id, token, _, _ in leases):
            raise EngineUnavailable("The connection to RabbitMQ was lost; whether it gives back what was held is not known yet.")


_by_place = attrgetter("place")
_NEVER = (0, 0.0, False)
_MARK = b"celeriac-again"
