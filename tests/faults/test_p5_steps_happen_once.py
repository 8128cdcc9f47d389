"""P5: a step of a workflow happens once. A process is killed at each thing that it asks of the engine, in turn, before it took effect and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from celeriac import Signature, chain, chord
from tests.integration.test_workflows import FLOWS, expected_of_nested, flows_of
from tests.support.engines import every_engine
from tests.support.workers import PATIENCE_SECONDS, Project, until

pytestmark = pytest.mark.promise(5)


def chain_of_five(flows: Any, label: str) -> Signature[Any]:
    return chain(*(flows.step.s(label=f"{label}.{n}") for n in range(5)))


def chord_of_ten(flows: Any, label: str) -> Signature[Any]:
    return chord([flows.step.s(label=f"{label}.{n}") for n in range(10)], flows.step.s(label=f"{label}.end"))


def nested_chord(flows: Any, label: str) -> Signature[Any]:
    nested: Signature[Any] = flows.nested(label)
    return nested


WORKFLOWS: dict[str, tuple[Callable[[Any, str], Signature[Any]], int, int]] = {
    "chain of 5": (chain_of_five, 5, 5),
    "chord of 10": (chord_of_ten, 11, 11),
    "nested chord": (nested_chord, 10, expected_of_nested()),
}
"""What it is, how many steps it has, and what comes out."""


@every_engine()
@pytest.mark.parametrize("workflow", WORKFLOWS)
@pytest.mark.timeout(300)
def test_p5_a_process_killed_at_each_operation_leaves_each_step_done_once(project: Project, workflow: str) -> None:
    flows = flows_of(project)
    make, steps, expected = WORKFLOWS[workflow]
    worker = project.worker("-c", "1", *FLOWS, env={"FLOWS_KILL": "1"})
    worker.may_complain = True
    met = 0
    for number in count(1):
        before = met
        for when in ("before", "after"):
            run = f"{when}-{number}"
            (project.directory / "kill").write_text(f"{run} {number} {when}")
            result = make(flows, run).apply_async()
            assert result.get(timeout=PATIENCE_SECONDS) == expected, run
            project.wait_empty()
            ran = Counter(entry.label for entry in project.journal("step") if entry.label.startswith(f"{run}."))
            assert len(ran) == steps and set(ran.values()) == {1}, (run, ran)
            joins = [parent.id for parent in result._parents() if hasattr(parent, "results")]
            killed = (project.directory / f"met-{run}").exists()
            if project.broker.capabilities.joins or not killed:  # kept apart, one may be left until the results expire
                until(lambda: not project.app.joins.joins(joins), f"the joins are forgotten ({run})")  # noqa: B023
            met += killed
        if met == before:
            break
    assert met >= 2 * 3, "a workflow asks more of the engine than that"
    assert project.dead() == {}
