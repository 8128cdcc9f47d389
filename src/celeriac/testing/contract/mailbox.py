"""Letters to nodes, and who is there."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ...contracts.engine import Engine
from ...contracts.mailbox import Letter, Node
from ..clock import FakeClock
from .harness import DEADLINE_SECONDS, EngineTests, start

PING = Letter(method="ping", arguments={"é": [1, None, {"deep": True}]}, reply_to="me é/%", ticket="t", sender="s")


class Mailboxes(EngineTests):
    """Post, collect, nodes."""

    def test_letters_come_whole_and_in_order(self, engine: Engine, other: Engine) -> None:
        letters = [PING, *(Letter(method=f"m{number}") for number in range(20))]
        for letter in letters:
            engine.post(["anna"], letter)
        assert other.collect("anna") == letters
        assert other.collect("anna") == engine.collect("anna") == []

    def test_to_several_addresses(self, engine: Engine, other: Engine) -> None:
        engine.post(["anna", "bert é/%", "nobody"], PING)
        engine.post([], PING)
        assert other.collect("anna") == [PING]
        assert other.collect("bert é/%") == [PING]
        assert other.collect("carl") == []

    def test_a_mailbox_needs_no_node_and_an_answer_finds_its_way(self, engine: Engine, other: Engine) -> None:
        engine.post(["anna"], PING)
        (question,) = other.collect("anna")
        assert question.reply_to is not None
        answer = Letter(method="reply", arguments={"node": "anna", "reply": {"ok": "pong"}}, ticket=question.ticket)
        other.post([question.reply_to], answer)
        assert engine.collect("me é/%") == [answer]

    def test_letters_are_kept_for_a_minute(self, engine: Engine, clock: FakeClock) -> None:
        engine.post(["anna", "bert"], Letter(method="old"))
        clock.advance(50)
        engine.post(["anna"], Letter(method="young"))
        assert [letter.method for letter in engine.collect("bert")] == ["old"]
        clock.advance(15)
        assert [letter.method for letter in engine.collect("anna")] == ["young"]

    def test_collect_times_out(self, live: Engine) -> None:
        begin = time.monotonic()
        assert live.collect("anna", 0.1) == []
        assert 0.09 <= time.monotonic() - begin < 5

    def test_collect_is_woken_by_a_letter(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor) -> None:
        wakes: list[float] = []
        for number in range(10):
            reader = threads.submit(live.collect, "anna", DEADLINE_SECONDS)
            begin = time.monotonic()
            live_other.post(["anna"], Letter(method=f"m{number}"))
            assert [letter.method for letter in reader.result(DEADLINE_SECONDS + 5)] == [f"m{number}"]
            wakes.append(time.monotonic() - begin)
        assert statistics.median(wakes) < 2

    def test_each_letter_is_collected_once(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor) -> None:
        def read(engine: Engine) -> list[str]:
            seen: list[str] = []
            deadline = time.monotonic() + DEADLINE_SECONDS
            while "end" not in seen and time.monotonic() < deadline:
                seen += [letter.method for letter in engine.collect("anna", DEADLINE_SECONDS)]
            return seen

        reader = threads.submit(read, live)
        writers = [threads.submit(live_other.post, ["anna"], Letter(method=f"m{number}")) for number in range(40)]
        for writer in writers:
            writer.result(DEADLINE_SECONDS)
        live_other.post(["anna"], Letter(method="end"))
        seen = reader.result(2 * DEADLINE_SECONDS + 5)
        assert sorted(seen) == sorted([*(f"m{number}" for number in range(40)), "end"])

    # -- nodes -------------------------------------------------------------------------------------------------------------

    def test_nodes_are_listed_as_they_registered(self, engine: Engine, other: Engine, clock: FakeClock) -> None:
        node = Node(
            id="id é",
            name="celeriac@é",
            host="é",
            boot="boot",
            pid=123,
            started_at=1.5,
            queues=["a", "é"],
            tasks=["t.é"],
            pool="prefork",
            concurrency=4,
            version="1",
        )
        engine.register(node, lease_seconds=15)
        clock.advance(5)
        (listed,) = other.nodes()
        assert listed.lease_left_seconds == pytest.approx(10, abs=0.01)
        assert listed == Node(
            **{**{field: getattr(node, field) for field in Node.__struct_fields__}, "lease_left_seconds": listed.lease_left_seconds}
        )
        clock.advance(15)
        assert other.nodes()[0].lease_left_seconds == pytest.approx(-5, abs=0.01)
        other.heartbeat("id é", lease_seconds=15)
        assert engine.nodes()[0].lease_left_seconds == pytest.approx(15, abs=0.01)

    def test_nodes_of_one_name(self, engine: Engine) -> None:
        """A host's second start is another node."""
        engine.register(Node(id="1", name="celeriac@host"), lease_seconds=15)
        engine.register(Node(id="2", name="celeriac@host"), lease_seconds=15)
        start(engine, "3")
        assert sorted(node.id for node in engine.nodes()) == ["1", "2", "3"]
        engine.unregister("1")
        assert sorted(node.id for node in engine.nodes()) == ["2", "3"]
