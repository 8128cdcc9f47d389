"""Who waits for work is woken by it, and not by the clock."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ...contracts.engine import Engine
from ...core.message import Verdict
from .harness import DEADLINE_SECONDS, EngineTests, ids, message, messages, settlement, start, take, take_one


class WaitingForWork(EngineTests):
    """These tests live by the machine's clock: `wait` waits in real time."""

    def test_it_times_out(self, live: Engine) -> None:
        begin = time.monotonic()
        assert live.wait(["celery"], 0.1) is False
        assert 0.09 <= time.monotonic() - begin < 5

    def test_a_timeout_of_nothing_is_a_look(self, live: Engine) -> None:
        begin = time.monotonic()
        assert live.wait(["celery"], 0.0) is False
        assert time.monotonic() - begin < 5

    @pytest.mark.parametrize("shared", [True, False])
    def test_publishing_wakes(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor, shared: bool) -> None:
        """Message by message, each as soon as the one before was taken: a wake that is lost, or late, shows."""
        publisher = live if shared else live_other
        holder = start(live)
        turns = threading.Semaphore(0)

        def work() -> list[str]:
            seen: list[str] = []
            deadline = time.monotonic() + DEADLINE_SECONDS
            while len(seen) < 50:
                assert time.monotonic() < deadline
                batch = take(live, holder)
                if not batch:
                    assert live.wait(["celery"], DEADLINE_SECONDS), "the wake was lost"
                    continue
                live.settle([settlement(delivery) for delivery in batch])
                seen += ids(batch)
                turns.release()
            return seen

        worker = threads.submit(work)
        wakes: list[float] = []
        for number in range(50):
            begin = time.monotonic()
            publisher.publish([message(f"m{number}")])
            assert turns.acquire(timeout=DEADLINE_SECONDS) or worker.result(0)
            wakes.append(time.monotonic() - begin)
        assert worker.result(DEADLINE_SECONDS) == ids(messages(50))
        assert statistics.median(wakes) < 0.2, "that is polling"

    def test_a_reservation_may_wait(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor) -> None:
        holder = start(live)

        def reserve(wait_seconds: float) -> list[str]:
            deliveries = live.reserve(["celery"], limit=5, holder=holder, wait_seconds=wait_seconds)
            live.settle([settlement(delivery) for delivery in deliveries])
            return ids(deliveries)

        assert take(live, holder) == []
        begin = time.monotonic()
        assert reserve(0.1) == []
        assert 0.09 <= time.monotonic() - begin < 5
        wakes: list[float] = []
        for number in range(20):
            begin = time.monotonic()
            waiter = threads.submit(reserve, DEADLINE_SECONDS)
            live_other.publish([message(f"m{number}")])
            assert waiter.result(DEADLINE_SECONDS + 5) == [f"m{number}"]
            assert take(live, holder) == []
            wakes.append(time.monotonic() - begin)
        assert statistics.median(wakes) < 0.5, "it was the clock that woke it"

    @pytest.mark.parametrize("settle", [False, True])
    def test_what_came_after_the_last_look_counts(self, live: Engine, live_other: Engine, settle: bool) -> None:
        """Published between the look and the wait: the wait ends at once."""
        holder = start(live)
        for number in range(20):
            assert take(live, holder) == []
            live_other.publish([message(f"m{number}")])
            begin = time.monotonic()
            assert live.wait(["celery"], DEADLINE_SECONDS) is True
            assert time.monotonic() - begin < DEADLINE_SECONDS / 2
            delivery = take_one(live, holder)
            if settle:
                live.settle([settlement(delivery)])

    @pytest.mark.parametrize("what", ["release", "crash", "retry", "follow up", "resume", "reclaim", "unregister", "replay"])
    def test_whatever_makes_ready_wakes(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor, what: str) -> None:
        live.publish([message("m")])
        delivery = take_one(live_other, start(live_other, "bert"))
        if what == "replay":
            live.settle([settlement(delivery, Verdict.DEAD, reason="x")])
        if what == "resume":
            live.pause(["celery"], by="anna")
            live.settle([settlement(delivery, Verdict.RELEASED)])
        deeds: dict[str, Callable[[], object]] = {
            "release": lambda: live_other.settle([settlement(delivery, Verdict.RELEASED)]),
            "crash": lambda: live_other.settle([settlement(delivery, Verdict.CRASHED)]),
            "retry": lambda: live_other.settle([settlement(delivery, Verdict.RETRY)]),
            "follow up": lambda: live_other.settle([settlement(delivery, follow_ups=[message("m")])]),
            "resume": lambda: live_other.resume(["celery"]),
            "reclaim": lambda: live_other.reclaim(["bert"]),
            "unregister": lambda: live_other.unregister("bert"),
            "replay": lambda: live_other.replay(["m"]),
        }
        holder = start(live)
        assert take(live, holder) == []
        waiting = threading.Event()

        def wait() -> tuple[bool, float]:
            waiting.set()
            begin = time.monotonic()
            return live.wait(["celery"], DEADLINE_SECONDS), time.monotonic() - begin

        waiter = threads.submit(wait)
        assert waiting.wait(DEADLINE_SECONDS)
        deeds[what]()
        woken, seconds = waiter.result(DEADLINE_SECONDS + 5)
        assert woken is True
        assert seconds < DEADLINE_SECONDS / 2
        assert ids(take(live, holder)) == ["m"]

    def test_coming_due_wakes(self, live: Engine) -> None:
        begin = time.monotonic()
        live.publish([message("far", delay_seconds=3600), message("near", delay_seconds=1.0)])
        holder = start(live)
        taken = ids(take(live, holder))
        while not taken and time.monotonic() - begin < DEADLINE_SECONDS:
            live.wait(["celery"], DEADLINE_SECONDS)
            taken = ids(take(live, holder))
        assert taken == ["near"]
        assert 0.9 < time.monotonic() - begin < DEADLINE_SECONDS / 2, "it is not the timeout that ends the wait"

    @pytest.mark.parametrize("far", [True, False])
    def test_what_is_scheduled_meanwhile_wakes_in_time(
        self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor, far: bool
    ) -> None:
        """Somebody waits for nothing in particular, or for something far off; then comes what is due soon."""
        holder = start(live)
        if far:
            live.publish([message("far", delay_seconds=3600)])

        def work() -> list[str]:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while time.monotonic() < deadline:
                live.wait(["celery"], DEADLINE_SECONDS)
                if taken := ids(take(live, holder)):
                    return taken
            return []

        worker = threads.submit(work)
        begin = time.monotonic()
        live_other.publish([message("near", delay_seconds=1.0)])
        assert worker.result(DEADLINE_SECONDS + 5) == ["near"]
        assert time.monotonic() - begin < DEADLINE_SECONDS / 2

    @pytest.mark.parametrize("state", ["paused", "leased", "scheduled", "elsewhere"])
    def test_what_cannot_be_had_lets_it_wait(self, live: Engine, state: str) -> None:
        """Or a worker would turn in circles. A first True may be a wake of before."""
        holder = start(live)
        live.publish([message("m", queue="b" if state == "elsewhere" else "celery", delay_seconds=3600 if state == "scheduled" else None)])
        if state == "paused":
            live.pause(["celery"], by="anna")
        assert len(take(live, holder)) == (1 if state == "leased" else 0)
        answers = [live.wait(["celery"], 0.05) for _ in range(10)]
        assert answers.count(True) <= 2

    def test_it_waits_for_several_queues(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor) -> None:
        holder = start(live)
        for number, queue in enumerate(["a", "b", "c é/%", "b"]):
            assert take(live, holder, "a", "b", "c é/%") == []
            waiter = threads.submit(live.wait, ["a", "b", "c é/%"], DEADLINE_SECONDS)
            live_other.publish([message(f"m{number}", queue=queue)])
            assert waiter.result(DEADLINE_SECONDS + 5) is True
            assert ids(take(live, holder, "a", "b", "c é/%")) == [f"m{number}"]

    def test_each_message_finds_somebody(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor) -> None:
        """Eight wait, eight messages come one by one and each is held until all are there: every waiter has to wake."""
        started = threading.Barrier(8)

        def work(process: int) -> str:
            engine = (live, live_other)[process % 2]
            holder = start(engine, f"node{process}", process)
            started.wait(DEADLINE_SECONDS)
            deadline = time.monotonic() + DEADLINE_SECONDS
            while time.monotonic() < deadline:
                if batch := take(engine, holder, limit=1):
                    return batch[0].id
                engine.wait(["celery"], DEADLINE_SECONDS)
            return ""

        begin = time.monotonic()
        workers = [threads.submit(work, process) for process in range(8)]
        for one in messages(8):
            live.publish([one])
        assert sorted(worker.result(DEADLINE_SECONDS + 5) for worker in workers) == ids(messages(8))
        assert time.monotonic() - begin < DEADLINE_SECONDS / 2
