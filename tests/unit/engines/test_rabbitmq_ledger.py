"""Whose the messages are that RabbitMQ has given to a supervisor; without a RabbitMQ."""

from __future__ import annotations

import time
from typing import Any

import pytest

from celeriac.core.errors import EngineUnavailable
from celeriac.core.message import Holder
from celeriac.engines import rabbitmq_ledger
from celeriac.engines.rabbitmq_held import Held
from celeriac.engines.rabbitmq_ledger import WORN_RETURNS, Ledger, Unread
from celeriac.engines.rabbitmq_sender import Topology
from celeriac.testing.clock import FakeClock

ANNA = Holder("anna", 1)


class Broker:
    """Gives numbers to messages, and hears which are acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []
        self.ledger = Ledger(Topology(), FakeClock(), self.acknowledged.extend)
        self._tags = 0
        self.asked = 0

    def give(self, id: str, *, kind: str = "queue", wait: float = 0.0, **fields: Any) -> int:
        self._tags += 1
        fields = {"queue": "celery", "properties": b"", "body": b"", "since": float(self._tags), **fields}
        self.ledger.receive(Held(id=id, tag=self._tags, **fields), wait, kind)
        return self._tags

    def take(self, limit: int = 100) -> list[str]:
        return [held.id for held in self.ledger.take(["celery"], limit, ANNA)]

    def settle(self, *ids: str, token: int = 1) -> list[str]:
        return self.ledger.settle([(id, token, "anna", 1) for id in ids])

    def leave(self, *ids: str, token: int = 1) -> list[str]:
        return self.ledger.leave([(id, token, "anna", 1) for id in ids], self._ask)

    def _ask(self) -> int:
        self.asked += 1
        return self.asked

    def reconnect(self) -> None:
        self.ledger.lose([])
        self.ledger.lost_until = time.monotonic() + 60.0

    def give_up_waiting(self) -> None:
        self.ledger.lost_until = time.monotonic() - 1.0


@pytest.fixture
def broker() -> Broker:
    return Broker()


def test_what_is_given_is_buffered_held_and_done(broker: Broker) -> None:
    tags = [broker.give("m"), broker.give("n")]
    assert broker.ledger.count(["celery"]) == 2
    assert broker.take(1) == ["m"]
    assert [held.id for held in broker.ledger.holdings("anna", 1)] == ["m"]
    assert broker.settle("m", "n") == ["n"]
    assert broker.acknowledged == tags[:1]
    assert (broker.ledger.holdings("anna"), broker.ledger.count(["celery"])) == ([], 1)


def test_what_is_acknowledged_early_is_gone_when_rabbitmq_has_answered(broker: Broker) -> None:
    tags = [broker.give("m"), broker.give("n")]
    broker.take()
    for id in ("m", "n", "m"):
        with pytest.raises(EngineUnavailable):
            broker.leave(id)
    assert (broker.acknowledged, broker.asked) == (tags, 2), "each is said once"
    with pytest.raises(EngineUnavailable):
        broker.ledger.holdings("anna", 1)
    broker.ledger.answered(1)
    assert (broker.leave("m"), list(broker.ledger.held)) == ([], ["n"])
    broker.ledger.answered(2)
    assert (broker.leave("n"), broker.leave("other"), broker.leave("m", token=2)) == ([], ["other"], ["m"])
    assert (broker.ledger.holdings("anna", 1), broker.ledger.lost("anna", 1)) == ([], [])


def test_what_is_acknowledged_early_is_not_given_back_before_it_is_known_whose_it_is(broker: Broker) -> None:
    """Else it would be there twice: what is published again, and what RabbitMQ gives to others when it has never heard of the acknowledgement."""
    lease = ("m", 1, "anna", 1)
    broker.give("m")
    broker.take()
    with pytest.raises(Unread):
        broker.leave("m")
    with pytest.raises(Unread):
        broker.ledger.stale([lease])
    broker.reconnect()
    broker.give_up_waiting()
    assert broker.ledger.stale([lease]) == ["m"]


def test_an_early_acknowledgement_that_was_lost_is_said_again_when_its_message_comes_back(broker: Broker) -> None:
    broker.give("m")
    broker.take()
    with pytest.raises(EngineUnavailable):
        broker.leave("m")
    broker.reconnect()
    broker.ledger.answered(1)
    with pytest.raises(EngineUnavailable):
        broker.leave("m")
    tag = broker.give("m", token=1, doubtful=True, returns=1)
    with pytest.raises(EngineUnavailable):
        broker.leave("m")
    assert broker.acknowledged[-1] == tag
    broker.ledger.answered(2)
    assert broker.leave("m") == []


def test_an_early_acknowledgement_is_refused_when_its_message_does_not_come_back(broker: Broker) -> None:
    """And for as long as its holder, alive or dead, has not let go of it, it is said to be lost."""
    broker.give("m")
    broker.take()
    with pytest.raises(EngineUnavailable):
        broker.leave("m")
    broker.reconnect()
    broker.give_up_waiting()
    assert (broker.leave("m"), broker.ledger.lost("anna", 1), broker.ledger.lost("anna", 2)) == (["m"], ["m"], [])
    assert (broker.ledger.stale([("m", 1, "anna", 1)]), broker.ledger.lost("anna", 1)) == (["m"], [])


def test_what_is_on_its_way_into_custody_is_acknowledged_early_when_it_is_there(broker: Broker) -> None:
    """Else its copy comes back to others, when the worker dies."""
    broker.give("m")
    broker.take()
    broker.ledger.copies["m"] = 1
    with pytest.raises(EngineUnavailable):
        broker.leave("m")
    assert (broker.acknowledged, broker.asked) == ([], 0)


def test_what_comes_once_more_while_it_is_acknowledged_early_is_acknowledged_too(broker: Broker) -> None:
    broker.give("m")
    broker.take()
    with pytest.raises(EngineUnavailable):
        broker.leave("m")
    again = broker.give("m")
    broker.ledger.answered(1)
    assert (broker.acknowledged[-1], broker.take()) == (again, [])


def test_another_lease_settles_nothing(broker: Broker) -> None:
    broker.give("m")
    broker.take()
    assert broker.settle("m", token=2) == ["m"]
    assert broker.ledger.stale([("m", 1, "anna", 1), ("m", 1, "anna", 2)]) == ["m"]
    assert (broker.settle("m"), broker.settle("m")) == ([], ["m"])


def test_what_was_given_back_comes_first_of_those_that_have_waited_as_long(broker: Broker) -> None:
    for id, kind, since in (("new", "queue", 5.0), ("back", "returned", 5.0), ("old", "queue", 4.0)):
        broker.give(id, kind=kind, since=since)
    assert broker.take() == ["old", "back", "new"]


def test_what_came_back_without_a_word_is_taken_alone(broker: Broker) -> None:
    for id, doubtful in (("m", False), ("suspect", True), ("n", False)):
        broker.give(id, doubtful=doubtful)
    assert [broker.take(), broker.take(), broker.take()] == [["m"], ["suspect"], ["n"]]


def test_what_is_not_due_or_came_back_too_often_is_not_buffered(broker: Broker) -> None:
    broker.give("later", wait=3.0)
    broker.give("worn", returns=WORN_RETURNS)
    assert broker.take() == []
    assert [(held.id, wait) for held, wait in broker.ledger.not_due] == [("later", 3.0)]
    assert [held.id for held in broker.ledger.worn] == ["worn"]


def test_what_a_lost_connection_held_is_nobodys_to_settle_until_it_comes_back(broker: Broker) -> None:
    broker.give("m")
    broker.take()
    broker.reconnect()
    with pytest.raises(EngineUnavailable):
        broker.settle("m")
    tag = broker.give("m", token=1, doubtful=True, returns=1)
    assert broker.take() == [], "its task still runs"
    assert (broker.settle("m"), broker.acknowledged) == ([], [tag])


def test_what_does_not_come_back_belongs_to_somebody_else(broker: Broker) -> None:
    broker.give("m")
    broker.take()
    broker.reconnect()
    broker.give_up_waiting()
    assert broker.settle("m") == ["m"]
    broker.give("m", token=1, doubtful=True, returns=1)
    assert broker.take() == ["m"], "late, and its holder was refused: it is run anew"


def test_an_acknowledgement_that_was_lost_is_said_again(broker: Broker) -> None:
    broker.give("m", since=7.0)
    broker.take()
    broker.settle("m")
    broker.reconnect()
    tag = broker.give("m", token=1, doubtful=True, since=7.0)
    assert (broker.take(), broker.acknowledged[-1]) == ([], tag)
    broker.give("m", since=8.0)
    assert broker.take() == ["m"], "another call with its id"


def test_what_a_settlement_publishes_waits_for_its_acknowledgement(broker: Broker) -> None:
    """A retry, which is given to us before the process has told us that its try is over."""
    broker.give("m")
    broker.take()
    broker.give("m", base=1, token=1)
    second = broker.give("m", base=1, token=1)
    assert (broker.take(), broker.acknowledged) == ([], [second])
    assert broker.settle("m") == []
    assert broker.take() == ["m"]
    assert broker.ledger.held["m"].token == 2


def test_two_copies_never_run_side_by_side(broker: Broker) -> None:
    broker.give("m")
    second = broker.give("m")
    assert (broker.take(), broker.acknowledged) == (["m"], [second])


def test_what_was_in_a_queue_of_custody_that_is_gone_is_ours_alone(broker: Broker) -> None:
    ledger = broker.ledger
    for id in ("in custody", "on its way", "new"):
        broker.give(id)
    broker.take()
    kept, coming, new = ledger.held.values()
    ledger.came_into_custody(kept, 10)
    ledger.copies[coming.id] = coming.token
    ledger.lose_custody()
    assert (broker.acknowledged, ledger.copies) == ([1, 10], {})
    assert ledger.due_for_custody(60.0, {"anna"}) == [kept, coming]
    assert ledger.due_for_custody(60.0, {"bert"}) == []
    broker.reconnect()
    assert ([kept.lost, coming.lost, new.lost], ledger.due_for_custody(60.0, {"anna"})) == ([False, True, True], [kept])
    assert broker.settle(kept.id) == []


def test_what_nobody_has_begun_is_lost_with_its_connection(broker: Broker) -> None:
    """It was promised to a process, and its copy was on the way into custody."""
    broker.give("m", doubtful=True)
    (held,) = broker.ledger.take(["celery"], 1, ANNA)
    broker.ledger.copies["m"] = held.token
    broker.ledger.lose([held])
    assert (broker.ledger.held, broker.ledger.copies, broker.ledger.void) == ({}, {}, {"m": held.token})


def test_what_is_revoked_is_said_with_it(broker: Broker) -> None:
    broker.ledger.revoked = {"m": broker.ledger.clock.time() + 1.0, "n": broker.ledger.clock.time() - 1.0}
    broker.give("m")
    broker.give("n")
    broker.take()
    assert [held.revoked for held in broker.ledger.held.values()] == [True, False]


def test_of_what_is_done_not_all_is_remembered(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_ledger, "REMEMBERED", 2)
    for number in range(5):
        broker.give(f"m{number}")
        broker.take()
        broker.settle(f"m{number}")
    assert [broker.ledger.has_settled(f"m{number}", 1) for number in range(5)] == [False, False, True, True, True]
