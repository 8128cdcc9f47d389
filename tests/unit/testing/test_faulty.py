"""The engine that fails at the operation you choose."""

from __future__ import annotations

import inspect

import pytest
from msgspec import Raw

from celeriac.contracts.engine import Engine
from celeriac.contracts.mailbox import Node
from celeriac.core.errors import EngineUnavailable
from celeriac.core.message import Holder, Message, Record
from celeriac.engines.memory import MemoryEngine
from celeriac.testing import FaultyEngine


def message(id: str) -> Message:
    return Message(id=id, task="tests.task", body=Raw(b"[[],{},{}]"))


@pytest.fixture
def memory() -> MemoryEngine:
    return MemoryEngine()


def test_before_means_that_nothing_happened(memory: MemoryEngine) -> None:
    faulty = FaultyEngine(memory, fail_at=1, when="before")
    with pytest.raises(EngineUnavailable, match=r"publish"):
        faulty.publish([message("m")])
    assert memory.queues() == []


def test_after_means_that_only_the_answer_is_lost(memory: MemoryEngine) -> None:
    faulty = FaultyEngine(memory, fail_at=1, when="after")
    with pytest.raises(EngineUnavailable):
        faulty.publish([message("m")])
    assert list(memory.find(["m"])) == ["m"]


def test_the_nth_operation_fails_and_only_that(memory: MemoryEngine) -> None:
    faulty = FaultyEngine(memory, fail_at=3)
    faulty.publish([message("m0")])
    faulty.register(Node(id="anna", name="anna"), lease_seconds=1)
    assert not faulty.failed
    with pytest.raises(EngineUnavailable):
        faulty.reserve(["celery"], limit=1, holder=Holder("anna"))
    assert faulty.failures == ["reserve"]
    assert [delivery.id for delivery in faulty.reserve(["celery"], limit=1, holder=Holder("anna"))] == ["m0"]
    assert faulty.operations == 4


def test_only_named_verbs_are_counted(memory: MemoryEngine) -> None:
    faulty = FaultyEngine(memory, fail_at=1, verbs=["fetch"])
    faulty.store([Record(task_id="m", status="SUCCESS")])
    with pytest.raises(EngineUnavailable):
        faulty.fetch(["m"])
    assert list(faulty.fetch(["m"])) == ["m"]


def test_several_in_a_row(memory: MemoryEngine) -> None:
    faulty = FaultyEngine(memory, fail_at=2, times=2)
    faulty.queues()
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            faulty.queues()
    faulty.queues()
    assert faulty.failures == ["queues", "queues"]


def test_any_error_may_be_raised(memory: MemoryEngine) -> None:
    with pytest.raises(ConnectionResetError):
        FaultyEngine(memory, fail_at=1, error=ConnectionResetError).queues()


def test_a_subscription_whose_answer_is_lost_is_closed(memory: MemoryEngine) -> None:
    with pytest.raises(EngineUnavailable):
        FaultyEngine(memory, fail_at=1, when="after").subscribe(["m"])
    assert memory._storage.subscriptions == {}


def test_it_knows_every_verb_of_an_engine() -> None:
    """A verb that the contract gains must be able to fail."""
    verbs = {name for name, member in inspect.getmembers(Engine, inspect.isfunction) if not name.startswith("_")}
    assert len(verbs) > 25
    for verb in verbs:
        assert (
            inspect.signature(getattr(FaultyEngine, verb)).parameters.keys() == inspect.signature(getattr(Engine, verb)).parameters.keys()
        )
