"""One handle for a workflow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from celeriac import Celeriac, Signature, chain, chord, group
from celeriac.canvas import Flow, start
from celeriac.core.errors import TimeoutError
from celeriac.worker.inline import InlineWorker


class Lab:
    def __init__(self, app: Celeriac) -> None:
        self.app = app
        self.broken: set[str] = set()
        self.ran: list[str] = []

        @app.task(name="work")
        def work(*args: Any) -> int:
            label = args[-1]
            self.ran.append(label)
            if label in self.broken:
                raise ValueError(label)
            before = args[0] if len(args) > 1 else 0
            return 1 + (sum(before) if isinstance(before, list) else before)

        self.work = work

    def s(self, label: str) -> Signature[Any]:
        return self.work.s(label)

    def whole(self) -> Signature[Any]:
        """One before a chord; in its header a task, a chain and a chord; a chain after it."""
        header = [self.s("b"), chain(self.s("c1"), self.s("c2")), chord([self.s("d1"), self.s("d2")], self.s("d"))]
        return chain(self.s("a"), group(header), self.s("e"), self.s("f"))


LABELS = ["a", "b", "c1", "c2", "d1", "d2", "d", "e", "f"]


@pytest.fixture
def lab(app: Celeriac) -> Lab:
    return Lab(app)


@pytest.fixture
def worker(app: Celeriac) -> Iterator[InlineWorker]:
    with InlineWorker(app) as worker:
        yield worker


def test_it_says_how_far_it_is(lab: Lab, worker: InlineWorker) -> None:
    flow = start(lab.whole())
    assert str(flow.progress()) == "0 of 9 have ended (9 PENDING)"
    assert flow.missing() == [flow.tasks[0].options["task_id"]]
    assert "line" in " ".join(flow.why()) or "worker" in " ".join(flow.why())
    worker.run()
    assert flow.progress().states == {"SUCCESS": 9} and flow.missing() == []
    assert flow.wait(timeout=0) == flow.result.get()


def test_arguments_go_to_those_that_start(lab: Lab, worker: InlineWorker) -> None:
    flow = start(chain(lab.s("a"), lab.s("b")), 10)
    worker.run()
    assert flow.wait(timeout=0) == 12


@pytest.mark.parametrize("broken", [[label] for label in LABELS] + [["b", "c2"], ["c1", "d1", "d2"], ["a", "f"]], ids="+".join)
def test_only_what_failed_is_tried_again(lab: Lab, worker: InlineWorker, broken: list[str]) -> None:
    whole = start(lab.whole())
    worker.run()
    expected = whole.wait(timeout=0)
    lab.ran.clear()
    lab.broken = set(broken)
    flow = start(lab.whole())
    for _ in range(3):
        worker.run()
        with pytest.raises(ValueError):
            flow.wait(timeout=0)
        if len(lab.broken) == 1:
            break
        lab.broken = {sorted(lab.broken)[-1]}
        assert flow.retry_failed() > 0
    lab.broken = set()
    before = list(lab.ran)
    assert flow.retry_failed() > 0
    worker.run()
    assert flow.wait(timeout=0) == expected
    assert sorted(set(lab.ran)) == sorted(LABELS)
    again = lab.ran[len(before) :]
    assert len(again) == len(set(again))
    succeeded_before = {label for label in before if before.count(label) and label not in broken}
    assert not succeeded_before & set(again), "what had succeeded ran again"
    assert flow.retry_failed() == 0
    assert not worker.engine._storage.joins


def test_a_flow_that_runs_is_not_tried_again(lab: Lab, worker: InlineWorker) -> None:
    flow = start(lab.whole())
    with pytest.raises(ValueError, match="has not ended"):
        flow.retry_failed()


def test_cancel_stops_the_rest(lab: Lab, worker: InlineWorker) -> None:
    flow = start(chain(lab.s("a"), lab.s("b").set(countdown=60), lab.s("c")))
    worker.run()
    assert sorted(flow.cancel().values()) == ["unknown", "waiting"]
    worker.run_all()
    assert lab.ran == ["a"]
    assert flow.progress().states == {"SUCCESS": 1, "REVOKED": 2}


def test_it_is_found_again_by_its_id(lab: Lab, worker: InlineWorker) -> None:
    flow = start(lab.whole())
    found = Flow.restore(flow.id, app=lab.app)
    assert found is not None and found.result.as_tuple() == flow.result.as_tuple()
    worker.run()
    assert found.progress().ended == 9
    assert Flow.restore("nobody", app=lab.app) is None


def test_a_bar_is_drawn(lab: Lab, worker: InlineWorker) -> None:
    flow = start(group(lab.s("a"), lab.s("b")))
    worker.run()
    drawn = io.StringIO()
    assert flow.wait(timeout=5, bar=drawn) == [1, 1]
    assert drawn.getvalue() == f"\r[{'#' * 30}] 2 of 2 have ended (2 SUCCESS)\n"
    waiting = start(lab.s("a") | lab.s("b"))
    with pytest.raises(TimeoutError, match="0 of 2 have ended"):
        waiting.wait(timeout=0, bar=io.StringIO())


def test_pictures(lab: Lab, worker: InlineWorker) -> None:
    lab.broken = {"c2"}
    flow = start(chain(lab.s("a"), group(lab.s("b"), chain(lab.s("c1"), lab.s("c2"))), lab.s("e")))
    worker.run()
    ids = [task.options["task_id"] for task in flow.tasks]
    assert flow.graph().splitlines() == [
        "chain",
        f"├─ SUCCESS  work('a')  {ids[0]}",
        "└─ chord of 2",
        f"   ├─ SUCCESS  work('b')  {ids[1]}",
        "   ├─ chain",
        f"   │  ├─ SUCCESS  work('c1')  {ids[2]}",
        f"   │  └─ FAILURE  work('c2')  {ids[3]}",
        f"   └─ then FAILURE  work('e')  {ids[4]}",
    ]
    mermaid = flow.graph("mermaid")
    assert mermaid.startswith("flowchart LR") and mermaid.count("-->") == 5 and "FAILURE" in mermaid
    svg = ElementTree.fromstring(flow.graph("svg"))
    assert len([element for element in svg.iter() if element.tag.endswith("rect")]) == 5
    with pytest.raises(ValueError, match="there are text, mermaid, svg"):
        flow.graph("png")
    many = start(chord([lab.s("x") for _ in range(100)], lab.s("y")))
    assert "… and 88 more" in many.graph() and "… 88 more" in many.graph("mermaid")
