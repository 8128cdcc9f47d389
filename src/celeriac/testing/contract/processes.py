"""Many at once: threads, processes, forks, and processes that are killed. Each message exactly once; each step whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import pytest

from ...contracts.engine import Engine
from ...core.message import Delivery, Holder, Settlement, Verdict
from .harness import DEADLINE_SECONDS, EngineMaker, EngineTests, ids, message, record, settlement, start

BATCH = 5
"""Messages that a publisher sends in one list."""
KILLS = 12
WORK = 300
"""Messages for each life of the killed workers: more than they can do in it, as a rule. What they leave is for the next."""


def produce(engine: Engine, name: str, batches: int) -> None:
    for batch in range(batches):
        engine.publish([message(f"{name}-{batch}-{position}") for position in range(BATCH)])


def outcome(delivery: Delivery) -> Settlement:
    return settlement(delivery, record=record(delivery.id), follow_ups=[message(f"{delivery.id}+", queue="next")])


def consume(engine: Engine, node: str, expected: Callable[[], bool]) -> list[str]:
    """Works until nothing comes any more and `expected` says that nothing will."""
    holder = start(engine, node, os.getpid())
    seen: list[str] = []
    settlements: list[Settlement] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        assert time.monotonic() < deadline, "the work does not come to its end"
        refused, batch = engine.exchange(settlements, ["celery"], limit=4, holder=holder)
        assert refused == []
        seen += ids(batch)
        settlements = [outcome(delivery) for delivery in batch]
        if batch:
            deadline = time.monotonic() + DEADLINE_SECONDS  # a slow machine is no fault; one that stands still is
        else:
            if expected():
                return seen
            engine.wait(["celery"], 0.5)


def all_published(engine: Engine) -> Callable[[], bool]:
    """The producers' last words are messages of a queue of their own."""
    return lambda: engine.depth(["produced"])["produced"].ready == 2 and engine.depth(["celery"])["celery"].ready == 0


# -- what other processes run ----------------------------------------------------------------------------------------


def run_producer(make_engine: EngineMaker, name: str, batches: int) -> None:
    engine = make_engine()
    produce(engine, name, batches)
    engine.publish([message(f"produced by {name}", queue="produced")])
    engine.close()


def run_consumer(make_engine: EngineMaker, name: str, answer: Connection) -> None:
    engine = make_engine()
    answer.send(consume(engine, name, all_published(engine)))
    engine.close()


def run_until_killed_publishing(make_engine: EngineMaker, name: str, acknowledged: Connection) -> None:
    engine = make_engine()
    for batch in range(400):
        engine.publish([message(f"{name}-{batch}-{position}") for position in range(BATCH)])
        os.write(acknowledged.fileno(), b".")
    signal.pause()


def run_until_killed_working(make_engine: EngineMaker, name: str, ready: Connection) -> None:
    engine = make_engine()
    holder = start(engine, name)
    os.write(ready.fileno(), b".")
    settlements: list[Settlement] = []
    while True:
        _, batch = engine.exchange(settlements, ["celery"], limit=3, holder=holder)
        settlements = [random_outcome(delivery) for delivery in batch]
        if not batch:
            engine.wait(["celery"], 1.0)


def random_outcome(delivery: Delivery) -> Settlement:
    if random.random() < 0.3:
        return settlement(delivery, random.choice([Verdict.RELEASED, Verdict.RETRY]))
    return outcome(delivery)


class Processes(EngineTests):
    """Real threads, real processes, real signals."""

    def test_threads_of_one_engine(self, live: Engine, threads: ThreadPoolExecutor) -> None:
        self.many_threads([live] * 4, threads)

    def test_threads_with_an_engine_each(self, make_engine: EngineMaker, threads: ThreadPoolExecutor) -> None:
        engines = [make_engine() for _ in range(4)]
        self.many_threads(engines, threads)
        for engine in engines:
            engine.close()

    def many_threads(self, engines: list[Engine], threads: ThreadPoolExecutor) -> None:
        def produce_all(engine: Engine, name: str) -> None:
            produce(engine, name, 20)
            engine.publish([message(f"produced by {name}", queue="produced")])

        producers = [threads.submit(produce_all, engines[0], "a"), threads.submit(produce_all, engines[1], "b")]
        consumers = [threads.submit(consume, engine, f"node{number}", all_published(engine)) for number, engine in enumerate(engines)]
        for producer in producers:
            producer.result(DEADLINE_SECONDS)
        seen = [id for consumer in consumers for id in consumer.result(DEADLINE_SECONDS)]
        self.check_all_ran_once(engines[0], seen, 20)

    def check_all_ran_once(self, engine: Engine, seen: list[str], batches: int) -> None:
        expected = {f"{name}-{batch}-{position}" for name in "ab" for batch in range(batches) for position in range(BATCH)}
        assert [id for id, times in Counter(seen).items() if times > 1] == []
        assert set(seen) == expected
        assert set(engine.fetch(list(expected))) == expected
        follow_ups = ids(engine.peek("next", limit=10_000))
        assert len(follow_ups) == len(expected)
        assert set(follow_ups) == {f"{id}+" for id in expected}
        assert not engine.depth(["celery"])["celery"].leased

    def test_a_hundred_registrations_and_publishings_of_the_same(
        self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor
    ) -> None:
        """The same ids from everywhere at once: each is held once."""

        def publish(number: int) -> None:
            (live, live_other)[number % 2].publish([message(f"m{position}") for position in range(10)])

        for done in [threads.submit(publish, number) for number in range(100)]:
            done.result(DEADLINE_SECONDS)
        assert sorted(ids(live.reserve(["celery"], limit=100, holder=start(live)))) == sorted(f"m{position}" for position in range(10))

    def test_two_reserve_the_same_at_once(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor) -> None:
        live.publish([message(f"m{number}") for number in range(200)])
        barrier = threading.Barrier(8)

        def race(number: int) -> list[str]:
            engine = (live, live_other)[number % 2]
            holder = start(engine, f"node{number}")
            barrier.wait(DEADLINE_SECONDS)
            return ids(engine.reserve(["celery"], limit=30, holder=holder))

        taken = [id for racer in [threads.submit(race, number) for number in range(8)] for id in racer.result(DEADLINE_SECONDS)]
        assert len(taken) == len(set(taken)) == 200

    # -- processes -------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_many_processes(self, make_engine: EngineMaker, method: str) -> None:
        if not make_engine.capabilities.processes:
            pytest.skip("this engine lives in one process")
        batches = 60
        context: Any = multiprocessing.get_context(method)
        answers, children = [], []
        for number in range(4):
            reader, writer = context.Pipe(duplex=False)
            answers.append(reader)
            children.append(context.Process(target=run_consumer, args=(make_engine, f"node{number}", writer), daemon=True))
        children += [context.Process(target=run_producer, args=(make_engine, name, batches), daemon=True) for name in "ab"]
        with running(children):
            seen: list[str] = []
            for answer in answers:
                assert answer.poll(DEADLINE_SECONDS * 2), "a process does not come to its end"
                seen += answer.recv()
            for child in children:
                child.join(DEADLINE_SECONDS)
            assert [child.exitcode for child in children] == [0] * len(children)
        engine = make_engine()
        self.check_all_ran_once(engine, seen, batches)
        engine.close()

    def test_an_engine_goes_on_in_a_forked_child(self, make_engine: EngineMaker, live: Engine) -> None:
        """Both use it at once; neither disturbs the other."""
        if not make_engine.capabilities.processes:
            pytest.skip("this engine lives in one process")
        live.publish([message("before")])
        holder = start(live)
        context = multiprocessing.get_context("fork")
        child = context.Process(target=fork_child, args=(live,), daemon=True)
        with running([child]):
            for number in range(100):
                live.publish([message(f"parent{number}")])
            child.join(DEADLINE_SECONDS)
            assert child.exitcode == 0
        taken = ids(live.reserve(["celery"], limit=1000, holder=holder))
        assert sorted(taken) == sorted(
            ["before", *(f"parent{number}" for number in range(100)), *(f"child{number}" for number in range(100))]
        )

    def test_another_process_wakes_us(self, make_engine: EngineMaker, live: Engine) -> None:
        if not make_engine.capabilities.processes:
            pytest.skip("this engine lives in one process")
        holder = start(live)
        context: Any = multiprocessing.get_context("fork")
        child = context.Process(target=echo, args=(make_engine, 50), daemon=True)
        with running([child]):
            assert live.wait(["pong"], DEADLINE_SECONDS)  # it has started
            trips: list[float] = []
            for number in range(50):
                begin = time.monotonic()
                while not (batch := live.reserve(["pong"], limit=1, holder=holder)):
                    assert live.wait(["pong"], DEADLINE_SECONDS)
                live.exchange([settlement(batch[0], follow_ups=[message(f"ping{number}", queue="ping")])], [], limit=0, holder=holder)
                trips.append(time.monotonic() - begin)
            child.join(DEADLINE_SECONDS)
            assert child.exitcode == 0
        assert statistics.median(trips) < 0.2, "that is polling"

    # -- killed processes ------------------------------------------------------------------------------------------------

    def test_killed_while_publishing(self, make_engine: EngineMaker) -> None:
        """Each list is there whole or not at all, and it is there if `publish` had returned."""
        self.needs_durable_processes(make_engine)
        engine = make_engine()
        dice = random.Random(1)
        for round_ in range(KILLS):
            context: Any = multiprocessing.get_context("fork")
            reader, writer = context.Pipe(duplex=False)
            child = context.Process(target=run_until_killed_publishing, args=(make_engine, f"{round_}", writer), daemon=True)
            with running([child]):
                writer.close()
                acknowledged = kill_after_some(child, reader, dice)
            make_engine.after_kill()
            ids = [waiting.id for waiting in engine.peek("celery", limit=100_000)]
            # The last request of the one killed before may have been carried out since.
            held = Counter(id.rsplit("-", 1)[0] for id in ids if id.startswith(f"{round_}-"))
            assert set(held.values()) <= {BATCH}, "half a list was published"
            assert len(held) - acknowledged in (0, 1), "a list that was acknowledged is lost"
            engine.purge(["celery"])
        engine.close()

    def test_killed_while_working(self, make_engine: EngineMaker) -> None:
        """Each message is either still there, without a trace of its outcome, or gone, with all of it."""
        self.needs_durable_processes(make_engine)
        engine = make_engine()
        dice = random.Random(2)
        task_ids: list[str] = []
        for round_ in range(KILLS):
            fresh = [f"m{round_}-{number}" for number in range(WORK)]
            task_ids += fresh
            engine.publish([message(id) for id in fresh])
            context: Any = multiprocessing.get_context("fork")
            reader, writer = context.Pipe(duplex=False)
            names = [f"node{round_}a", f"node{round_}b"]
            children = [context.Process(target=run_until_killed_working, args=(make_engine, name, writer), daemon=True) for name in names]
            with running(children):
                writer.close()
                kill_after_some(children[0], reader, dice, within_seconds=0.02)
                time.sleep(dice.random() * 0.01)
                children[1].kill()
                children[1].join(DEADLINE_SECONDS)
            make_engine.after_kill()
            self.check_each_is_whole(engine, task_ids)
            held = {delivery.id for name in names for delivery in engine.held(name)}
            assert set(engine.reclaim(names)) == held
        consume(engine, "last", lambda: engine.depth(["celery"])["celery"].ready == 0)
        self.check_each_is_whole(engine, task_ids)
        assert len(engine.fetch(task_ids)) == len(task_ids)
        assert engine.depth() == {"next": engine.depth(["next"])["next"]}
        assert engine.depth()["next"].ready == len(task_ids)
        engine.close()

    def check_each_is_whole(self, engine: Engine, task_ids: list[str]) -> None:
        done = set(engine.fetch(task_ids))
        follow_ups = {waiting.id[:-1] for waiting in engine.peek("next", limit=100_000)}
        there = {waiting.id for state in ("ready", "leased") for waiting in engine.peek("celery", state=state, limit=100_000)}
        assert done == follow_ups
        assert done | there == set(task_ids), "lost"
        assert done & there == set(), "done, and there still"

    def needs_durable_processes(self, make_engine: EngineMaker) -> None:
        if not (make_engine.capabilities.processes and make_engine.capabilities.durable):
            pytest.skip("this engine does not outlive a process")


def fork_child(engine: Engine) -> None:
    for number in range(100):
        engine.publish([message(f"child{number}")])
    engine.close()


def echo(make_engine: EngineMaker, rounds: int) -> None:
    engine = make_engine()
    holder: Holder = start(engine, "echo")
    engine.publish([message("pong", queue="pong")])
    for number in range(rounds):
        while not (batch := engine.reserve(["ping"], limit=1, holder=holder)):
            assert engine.wait(["ping"], DEADLINE_SECONDS)
        engine.settle([settlement(batch[0], follow_ups=[message(f"pong{number}", queue="pong")])])
    engine.close()


def kill_after_some(child: Any, reader: Connection, dice: random.Random, *, within_seconds: float = 0.06) -> int:
    """SIGKILL at a moment nobody chose, but not before it has begun. Returns how many acknowledgements it had written."""
    assert reader.poll(DEADLINE_SECONDS), "the process has not begun"
    time.sleep(dice.random() * within_seconds)
    child.kill()
    child.join(DEADLINE_SECONDS)
    os.set_blocking(reader.fileno(), False)
    acknowledged = 0
    with suppress(BlockingIOError):
        while chunk := os.read(reader.fileno(), 65536):
            acknowledged += len(chunk)
    return acknowledged


class running:
    """Starts processes, and leaves none behind."""

    def __init__(self, children: list[Any]) -> None:
        self.children = children

    def __enter__(self) -> None:
        for child in self.children:
            child.start()

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            if child.is_alive():
                child.kill()
            child.join(DEADLINE_SECONDS)
