"""What an engine promises about messages. Each verb is a transition; its docstring is the promise.

        publish                 reserve                 settle
    ────────────▶ ready ──────────────────▶ leased ──────────────▶ gone · scheduled (retry) · ready (released, crashed) · dead
                    ▲                          │
         promote    │      reclaim (crash + 1) │
    scheduled ──────┴──────────────────────────┘

An engine knows nothing of tasks, retries or crash limits: it counts, and those who reserve judge. Every verb takes lists,
since one is a list of one and a list is one trip. Every verb may be called from any thread, and after a fork, where the engine opens a connection of its
own. `celeriac.testing.contract` is the definition: an engine that passes it is correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from ..core.message import Delivery, Holder, Join, Message, Revocation, Settlement
from .inspect import Inspector
from .mailbox import Mailbox, Node


class Capabilities(Struct, frozen=True, kw_only=True):
    """In what an engine differs from the others. Nothing asks `isinstance`."""

    engine: str
    priorities: bool = True
    """Higher priorities are reserved first."""
    scheduling: bool = True
    """Messages that are not due wait in the engine, for any length."""
    atomic_results: bool = True
    """It is a ResultBackend too, and `settle` stores the record in the same step as all the rest."""
    joins: bool = True
    """It keeps joins, and counts them in the step that settles. Where it does not, the result backend keeps them."""
    schedules: bool = False
    """It keeps schedules (`engine.schedules`, see contracts/schedules.py), and fires them in the step that publishes."""
    ids: bool = True
    """It knows messages by their ids: a repeat of a publication changes nothing, and `find`, `peek` and `revoke` see every message. Where it does not, they see what
    nodes of this process hold, and dead letters; a revoked message is told so when it is reserved."""
    counts: bool = True
    """`depth` says how many are scheduled and leased. Where it does not, these are None, but for what nodes of this process hold."""
    connection_leases: bool = False
    """A lease ends with the connection of its node, also before its time; after its time, the server ends the connection."""
    own_timers: bool = False
    """Messages that are not due wait by a clock of the server's that nobody can turn."""
    steps: bool = False
    """It keeps the steps of tasks, and events that tasks wait for (see contracts/steps.py)."""
    processes: bool = True
    """Several processes can share it."""
    forgets: bool = False
    """A crash of its server may undo what it said last, or give a worker once more, and late, what a lost connection held: workers ask now and then what they are thought
    to hold."""
    durable: bool = True
    """What was published survives the end of every process."""


class Broker(Inspector, Mailbox, Protocol):
    """Where messages wait and are leased. Raises `EngineUnavailable` from every verb when it cannot be reached or used; then nothing has changed, unless it is `EngineUnsure`: the answer was lost."""

    capabilities: Capabilities
    url: str

    # -- the life of a message ---------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, joins: Sequence[Join] = (), timeout_seconds: float | None = None) -> None:
        """→ ready, or scheduled when not due. All of them or none.

        When it returns, the engine holds them. A message whose id the engine holds already, waiting or leased, changes
        nothing: so a repeat is harmless. The same goes for an id that the list bears twice. (Dead letters do not count as
        held.) Raises `EngineUnavailable` within `timeout_seconds` when the engine does not answer; what msgspec cannot encode
        raises its error. Either way no message of the list was published, and no join was opened; but for `EngineUnsure`: only the answer is known to be missing.

        `joins` are opened in the same step, before the messages come; one that is held already stays as it is. One of size 0 is complete at once.
        """
        ...

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder, wait_seconds: float = 0.0) -> list[Delivery]:
        """ready → leased: up to `limit` messages of `queues`, best priority first, then those that have waited longest.

        Those whose time has come are promoted on the way; they have waited since that time. What was released, crashed or
        reclaimed has waited since it was ready first, so it comes before younger ones. Paused queues give nothing.
        With `wait_seconds` it waits first, as `wait` does: for those who have just been given nothing. An engine may do both in one trip.
        Atomic: a crash leaves each message either ready or leased. What cannot be decoded is delivered too, with `error` set.

        Raises: NodeLost: the holder's node is not (or no longer) registered; nothing was leased.
        """
        ...

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        """leased → as each verdict says, together with its record and its follow-ups; one settlement is one step.

        Returns the ids of those that were refused, in any order, of which nothing at all was stored: somebody else holds the message now, or nobody does.
        The message leaves before its follow-ups come, so one of them may bear its id. Joins are opened and enlarged before anything of the list
        arrives, and left after it. RETRY starts the counts of crashes and interruptions anew, but not the token's. A lease that ran out holds until
        somebody reclaims.
        """
        ...

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        """`settle`, then `reserve`, in one trip. When it raises NodeLost, nothing was settled either."""
        ...

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        """What a node, or one process of it, holds now, in the order in which it was reserved. Changes nothing.

        An engine may take who has been given nothing for one who waits still, and wake him in the place of others. Who asks this does not wait.
        """
        ...

    def lost(self, node: str, process: int) -> list[str]:
        """The ids of what a process of a living node was given and which may be somebody else's by now. None where a lease ends only with its node's. Changes nothing."""
        ...

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        """waiting → gone, with its record stored and its arrival counted; durable, with no worker running. Says for each id what it was:

        "waiting" (gone now), "running" (it goes on, but a RETRY, RELEASED or CRASHED of it becomes the end of it: the settlement is
        taken as DONE, and with it the revocation's record is stored and its arrival counted; with `terminate` its node gets a letter `terminate`),
        "unknown" (remembered for `revokes_expire_seconds`: reserved later, it is delivered with `revoked` set; a dead letter is unknown too).

        To be reclaimed or unregistered ends a revoked running message like CRASHED and RELEASED do. The letter's arguments are `task_id` and `signal`.
        """
        ...

    # -- nodes and their leases ----------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        """A worker starts: its lease begins. A second registration of the same id replaces the first, and what it holds stays its."""
        ...

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        """Renews all that the node holds, in one step. False: it is not registered (its lease had run out and it was
        reclaimed); nothing was renewed. A lease that ran out, but was not reclaimed, is renewed: nobody else has got anything of it."""
        ...

    def unregister(self, node: str) -> None:
        """A worker ends. What it still holds is ready again, as interrupted."""
        ...

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        """leased → ready, crash count + 1, for all that is held by nodes whose lease ran out, by the named ones and by
        unregistered ones; these nodes are gone afterwards. Returns the ids of the messages. Leases are measured with the
        clock that only goes on, where the engine has one: setting the wall clock ends none."""
        ...

    # -- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        """Returns early, with True, when something may be ready in one of `queues`: published, released, resumed or come due.

        What became ready before the call counts, if the caller has looked for it (`reserve`) before that. It wakes somebody for each ready
        message, not everybody. May be wrong in saying True, but not again and again: what is paused or leased lets it wait.
        The timeout is in seconds of real life, whatever the engine's clock says.
        """
        ...

    def close(self) -> None:
        """Gives back connections and files. The next verb opens them again."""
        ...
