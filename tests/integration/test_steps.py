"""Durable steps on real workers: what was finished before a SIGKILL is not done again, and a wait holds no place."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.workers import Project, until

TASKS = """

from celeriac.steps import astep, sleep, step, wait_for_event


@app.task(bind=True)
def order(self, label):
    step("charge", note, self, "charge", label)
    note(self, "between", label)
    wait_for_gate(label)
    paid = wait_for_event(f"paid:{label}", timeout=3600)
    sleep("moment", 0.2)
    step("tell", note, self, "tell", label)
    return paid


@app.task(bind=True)
async def aorder(self, label):
    async def charge():
        note(self, "charge", label)

    await astep("charge", charge)
    return wait_for_event(f"paid:{label}", timeout=3600)
"""


@pytest.fixture
def stepping(project: Project) -> Project:
    with open(project.directory / "proj.py", "a") as module:
        module.write(TASKS)
    if not project.broker.capabilities.steps:
        pytest.skip("this engine keeps no steps")
    return project


def test_a_killed_process_repeats_no_finished_step(stepping: Project) -> None:
    worker = stepping.worker("-c", "1")
    result = stepping.tasks.order.delay("a")
    for kills in (1, 2):
        _wait_between(stepping, "a", kills)
        os.kill(stepping.journal("between", "a")[-1].pid, signal.SIGKILL)
    _wait_between(stepping, "a", 3)
    stepping.open_gate("a")
    _wait_parked(stepping, result.id)
    assert stepping.app.occur("paid:a", {"amount": 5}) == [result.id]
    assert result.get(timeout=40) == {"amount": 5}
    assert [len(stepping.journal(what, "a")) for what in ("charge", "tell")] == [1, 1]
    assert stepping.broker.recall(result.id) == {}
    assert worker.stop() == 0


def test_who_waits_holds_no_place_and_needs_no_worker(stepping: Project) -> None:
    """More wait than there are places; the worker ends meanwhile, and another goes on."""
    for label in "abc":
        stepping.open_gate(label)
    first = stepping.worker("-c", "1")
    results = {label: stepping.tasks.order.delay(label) for label in "abc"}
    for result in results.values():
        _wait_parked(stepping, result.id)
    assert stepping.tasks.add.delay(1, 2).get(timeout=40) == 3
    assert first.stop() == 0
    for label in "abc":
        stepping.app.occur(f"paid:{label}", label)
    second = stepping.worker("-c", "1")
    assert {label: result.get(timeout=40) for label, result in results.items()} == {label: label for label in "abc"}
    assert [len(stepping.journal(what)) for what in ("charge", "tell")] == [3, 3]
    assert second.stop() == 0


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_steps_in_other_pools(stepping: Project, pool: str) -> None:
    for label in "abcd":
        stepping.open_gate(label)
    worker = stepping.worker("-P", pool, "-c", "2")
    results = [
        stepping.tasks.order.delay("a"),
        stepping.tasks.order.delay("b"),
        stepping.tasks.aorder.delay("c"),
        stepping.tasks.aorder.delay("d"),
    ]
    for label, result in zip("abcd", results, strict=True):
        _wait_parked(stepping, result.id)
        stepping.app.occur(f"paid:{label}", label)
    assert [result.get(timeout=40) for result in results] == list("abcd")
    assert len(stepping.journal("charge")) == 4
    assert worker.stop() == 0


def _wait_between(project: Project, label: str, times: int) -> None:
    until(lambda: len(project.journal("between", label)) >= times, f"run {times} is past its first step")


def _wait_parked(project: Project, task_id: str) -> None:
    def parked() -> bool:
        return any(step.event is not None and step.result is None for step in project.broker.recall(task_id).values())

    until(parked, "it waits")
