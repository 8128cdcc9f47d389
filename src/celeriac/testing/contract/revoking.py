"""A revoked task does not run, with or without a worker there to hear of it."""

from __future__ import annotations

import pytest

from ...contracts.engine import Engine
from ...core.message import Revocation, Verdict
from ..clock import FakeClock
from .harness import EngineMaker, EngineTests, ids, message, messages, record, settlement, start, state_of, take, take_one


def revocation(id: str, *, terminate: bool = False, signal: str = "SIGTERM") -> Revocation:
    return Revocation(id=id, terminate=terminate, signal=signal, record=record(id, "REVOKED"))


class Revoking(EngineTests):
    """waiting → gone; running → its end; unknown → remembered."""

    def test_a_waiting_one_is_gone_and_its_record_stored(self, engine: Engine, other: Engine) -> None:
        engine.publish([*messages(3), message("later", delay_seconds=100)])
        assert other.revoke([revocation("m1"), revocation("later")]) == {"m1": "waiting", "later": "waiting"}
        assert engine.find(["m1", "later"]) == {}
        assert {id: found.status for id, found in engine.fetch(["m0", "m1", "later"]).items()} == {"m1": "REVOKED", "later": "REVOKED"}
        assert ids(take(engine, start(engine))) == ["m0", "m2"]

    def test_a_revoked_scheduled_one_never_comes(self, engine: Engine, clock: FakeClock) -> None:
        engine.publish([message("m", delay_seconds=10)])
        engine.revoke([revocation("m")])
        clock.advance(11)
        assert take(engine, start(engine)) == []
        assert engine.depth(["celery"])["celery"].scheduled == 0

    def test_it_needs_no_record(self, engine: Engine) -> None:
        engine.publish([message("m")])
        assert engine.revoke([Revocation(id="m")]) == {"m": "waiting"}
        assert engine.fetch(["m"]) == {}

    def test_a_dead_letter_is_unknown_and_stays(self, engine: Engine) -> None:
        engine.publish([message("m")])
        engine.settle([settlement(take_one(engine, start(engine)), Verdict.DEAD, reason="x")])
        assert engine.revoke([revocation("m")]) == {"m": "unknown"}
        assert state_of(engine, "m") == "dead"

    # -- running ---------------------------------------------------------------------------------------------------------

    def test_a_running_one_goes_on(self, engine: Engine, other: Engine) -> None:
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        assert other.revoke([revocation("m")]) == {"m": "running"}
        assert other.fetch(["m"]) == {}
        assert "m" in other.revoked()
        assert engine.settle([settlement(delivery, record=record("m", "SUCCESS"))]) == []
        assert engine.fetch(["m"])["m"].status == "SUCCESS"

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RELEASED, Verdict.CRASHED])
    def test_a_running_one_does_not_wait_again(self, engine: Engine, other: Engine, verdict: Verdict) -> None:
        engine.publish([message("m")])
        holder = start(engine)
        delivery = take_one(engine, holder)
        other.revoke([revocation("m")])
        assert engine.settle([settlement(delivery, verdict, record=record("m", "RETRY"))]) == []
        assert engine.find(["m"]) == {}
        assert engine.held("anna") == []
        assert engine.fetch(["m"])["m"].status == "REVOKED"
        assert take(engine, holder) == []

    @pytest.mark.parametrize("by", ["reclaim", "unregister"])
    def test_a_running_one_whose_node_is_gone_does_not_wait_again(self, engine: Engine, by: str) -> None:
        engine.publish([message("m")])
        take_one(engine, start(engine))
        engine.revoke([revocation("m")])
        engine.reclaim(["anna"]) if by == "reclaim" else engine.unregister("anna")
        assert engine.find(["m"]) == {}
        assert engine.fetch(["m"])["m"].status == "REVOKED"
        assert take(engine, start(engine, "bert")) == []

    def test_terminate_is_told_to_the_node(self, engine: Engine, other: Engine) -> None:
        engine.publish(messages(2))
        take_one(engine, start(engine, "anna"))
        take_one(engine, start(engine, "bert"))
        assert other.revoke([revocation("m1", terminate=True, signal="SIGKILL"), revocation("m0")]) == {"m1": "running", "m0": "running"}
        assert engine.collect("anna") == []
        (letter,) = engine.collect("bert")
        assert letter.method == "terminate"
        assert letter.arguments == {"task_id": "m1", "signal": "SIGKILL"}

    def test_terminate_of_a_waiting_one_tells_nobody(self, engine: Engine) -> None:
        engine.publish([message("m")])
        start(engine)
        assert engine.revoke([revocation("m", terminate=True)]) == {"m": "waiting"}
        assert engine.collect("anna") == []

    def test_first_revoked_and_then_terminated(self, engine: Engine) -> None:
        engine.publish([message("m")])
        take_one(engine, start(engine))
        assert engine.revoke([revocation("m")]) == engine.revoke([revocation("m", terminate=True)]) == {"m": "running"}
        assert [letter.method for letter in engine.collect("anna")] == ["terminate"]

    # -- unknown ---------------------------------------------------------------------------------------------------------

    def test_an_unknown_one_is_remembered(self, engine: Engine, other: Engine) -> None:
        assert engine.revoke([revocation("m")]) == {"m": "unknown"}
        assert engine.fetch(["m"]) == {}
        assert other.revoked() == ["m"]
        other.publish([message("m"), message("n")])
        revoked, other_one = take(other, start(other))
        assert (revoked.id, revoked.revoked, other_one.revoked) == ("m", True, False)
        assert revoked.message is not None
        assert other.settle([settlement(revoked, record=record("m", "REVOKED"))]) == []

    def test_it_is_remembered_for_so_long_and_no_longer(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        engine = make_engine(clock=clock, revokes_expire_seconds=100)
        engine.revoke([revocation("m"), revocation("n")])
        clock.advance(99)
        engine.publish([message("m")])
        holder = start(engine)
        assert take_one(engine, holder).revoked
        clock.advance(2)
        engine.publish([message("n")])
        assert not take_one(engine, holder).revoked
        assert engine.revoked() == []
        engine.close()

    def test_revokes_are_durable(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        if not make_engine.capabilities.durable:
            pytest.skip("this engine is not durable")
        engine = make_engine(clock=clock)
        engine.publish([message("running"), message("waiting")])
        delivery = take_one(engine, start(engine))
        assert engine.revoke([revocation(id) for id in ("running", "waiting", "unknown")]) == {
            "running": "running",
            "waiting": "waiting",
            "unknown": "unknown",
        }
        engine.close()
        again = make_engine(clock=clock)
        assert again.settle([settlement(delivery, Verdict.RETRY)]) == []
        again.publish([message("unknown")])
        (left,) = take(again, start(again))
        assert (left.id, left.revoked) == ("unknown", True)
        assert sorted(again.fetch(["running", "waiting"])) == ["running", "waiting"]
        again.close()

    def test_many_at_once(self, engine: Engine) -> None:
        engine.publish(messages(1500))
        answers = engine.revoke([revocation(f"m{number}") for number in range(3000)])
        assert list(answers.values()) == ["waiting"] * 1500 + ["unknown"] * 1500
        assert engine.depth(["celery"])["celery"].ready == 0
