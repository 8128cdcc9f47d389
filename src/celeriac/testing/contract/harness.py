"""What the suite needs of an engine's author, and the few words in which its tests are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pytest
from msgspec import Raw

from ...contracts.broker import Capabilities
from ...contracts.engine import Engine
from ...contracts.inspect import Waiting
from ...contracts.mailbox import Node
from ...core.clock import Clock
from ...core.message import Delivery, Holder, Message, Record, Settlement, Verdict
from ..clock import FakeClock

DEADLINE_SECONDS = 40.0
"""Nothing takes so long; a test that waits so long has failed."""
LEASE_SECONDS = 15.0


class EngineMaker(Protocol):
    """Opens engines over one storage, which was empty at first. It is sent to other processes by pickle where the engine can be shared by processes."""

    capabilities: Capabilities

    def __call__(self, *, clock: Clock = ..., **options: Any) -> Engine:
        """Another engine over the same storage, as another process would open it. Options are `result_expires` and `revokes_expire_seconds`.

        An engine whose clock is its server's adds, for the given clock, how far that one has been turned.
        """
        ...

    def corrupt(self, engine: Engine, id: str) -> None:
        """Damages the stored form of a waiting message, so that it cannot be decoded; all that was stored beside it stays."""
        ...

    def lose_registration(self, engine: Engine, node: str) -> None:
        """Removes the registration of a node, as if it had never been, and leaves all that the node holds."""
        ...

    def after_kill(self) -> None:
        """Clients were killed. Returns when all that they had asked for last is done or given up: a server may be at it still."""
        ...


class EngineTests:
    """The fixtures of all parts of the suite."""

    @pytest.fixture
    def make_engine(self) -> EngineMaker:
        raise NotImplementedError("The author of an engine gives this fixture; see celeriac.testing.contract.")

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def engine(self, make_engine: EngineMaker, clock: FakeClock) -> Iterator[Engine]:
        """An engine whose clock the test turns."""
        engine = make_engine(clock=clock)
        yield engine
        engine.close()

    @pytest.fixture
    def other(self, make_engine: EngineMaker, clock: FakeClock, engine: Engine) -> Iterator[Engine]:
        """Another one over the same storage, with the same clock."""
        other = make_engine(clock=clock)
        yield other
        other.close()

    @pytest.fixture
    def live(self, make_engine: EngineMaker) -> Iterator[Engine]:
        """An engine with the machine's own clock."""
        engine = make_engine()
        yield engine
        engine.close()

    @pytest.fixture
    def live_other(self, make_engine: EngineMaker, live: Engine) -> Iterator[Engine]:
        other = make_engine()
        yield other
        other.close()

    @pytest.fixture
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        with ThreadPoolExecutor(16) as pool:
            yield pool


def message(id: str, **fields: Any) -> Message:
    return Message(**{"id": id, "task": "tests.task", "body": Raw(b"[[],{},{}]"), **fields})


def messages(count: int, prefix: str = "m", **fields: Any) -> list[Message]:
    return [message(f"{prefix}{number}", **fields) for number in range(count)]


def record(id: str, status: str = "SUCCESS", **fields: Any) -> Record:
    return Record(task_id=id, status=status, **fields)


def start(engine: Engine, node: str = "anna", process: int = 0) -> Holder:
    """A worker starts."""
    engine.register(Node(id=node, name=f"celeriac@{node}"), lease_seconds=LEASE_SECONDS)
    return Holder(node, process)


def take(engine: Engine, holder: Holder, *queues: str, limit: int = 100) -> list[Delivery]:
    return engine.reserve(queues or ("celery",), limit=limit, holder=holder)


def take_one(engine: Engine, holder: Holder, *queues: str) -> Delivery:
    deliveries = take(engine, holder, *queues, limit=1)
    assert len(deliveries) == 1
    return deliveries[0]


def settlement(delivery: Delivery, verdict: Verdict = Verdict.DONE, **fields: Any) -> Settlement:
    if verdict is Verdict.RETRY and "message" not in fields:
        fields["message"] = delivery.message
    return Settlement(id=delivery.id, verdict=verdict, lease=delivery.lease, receipt=delivery.receipt, **fields)


def ids(things: Sequence[Delivery] | Sequence[Waiting] | Sequence[Message]) -> list[str]:
    return [thing.id for thing in things]


def state_of(engine: Engine, id: str) -> str | None:
    """ready, scheduled, leased, dead, or None."""
    found = engine.find([id])
    return found[id].state if found else None


def eventually(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {seconds} s")
        time.sleep(0.005)
