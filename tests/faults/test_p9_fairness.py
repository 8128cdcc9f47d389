"""P9: no tuning for fairness. Short tasks do not wait behind a long one while a process is free."""

from __future__ import annotations

import pytest

from tests.support.workers import Project, until

pytestmark = pytest.mark.promise(9)

SHORT = [f"short-{number}" for number in range(40)]


@pytest.mark.parametrize("holds_the_gil", [False, True], ids=["sleeping", "holding the GIL"])
def test_p9_forty_short_tasks_do_not_wait_for_the_long_one_before_them(project: Project, holds_the_gil: bool) -> None:
    """The batches have grown by then, so the long one is taken together with short ones."""
    project.broker.pause(["celery"], by="the test")
    warm = [project.tasks.add.delay(number, 1) for number in range(300)]
    if holds_the_gil:
        long = project.tasks.block.delay("long", project.make_gate("go"))
    else:
        long = project.tasks.work.delay("long", gate="go")
    short = [project.tasks.work.delay(label) for label in SHORT]
    project.worker("-c", "2")
    project.broker.resume(["celery"])
    until(lambda: all(project.ends(label) for label in SHORT), "all short ones have run")
    assert project.starts("long") and not project.ends("long"), "and the long one still runs"
    for result in (*warm, *short):  # what had ended before the long one in its batch is not held back either
        project.wait_state(result.id, "SUCCESS")
    depth = project.broker.depth(["celery"])["celery"]
    assert (depth.ready, depth.leased) == (0, 1)
    project.open_gate("go")
    project.wait_state(long.id, "SUCCESS")
    project.wait_empty()
    labels = [entry.label for entry in project.journal("start")]
    assert len(labels) == len(set(labels)), "something ran twice"


def test_p9_when_every_process_is_busy_nothing_is_held_that_does_not_run(project: Project) -> None:
    """So that a worker which comes to help finds everything."""
    project.broker.pause(["celery"], by="the test")
    for number in range(300):
        project.tasks.add.delay(number, 1)
    for number in range(2):
        project.tasks.block.delay(f"long-{number}", project.make_gate(f"go-{number}"))
    for label in SHORT:
        project.tasks.work.delay(label)
    project.worker("-c", "2")
    project.broker.resume(["celery"])
    project.wait_started("long-0")
    project.wait_started("long-1")

    def given_back() -> bool:
        depth = project.broker.depth(["celery"])["celery"]
        return depth.leased == 2 and depth.ready == len([label for label in SHORT if not project.starts(label)])

    until(given_back, "only what runs is held")
    project.worker("-c", "1")
    until(lambda: all(project.ends(label) for label in SHORT), "the second worker has run them all")
    assert not project.journal("end", "long-0") and not project.journal("end", "long-1")
    project.open_gate("go-0")
    project.open_gate("go-1")
    project.wait_empty()


def test_p9_an_idle_process_gets_its_share_of_slow_tasks(project: Project) -> None:
    """Two tasks that take long, sent together, run at the same time."""
    project.worker("-c", "2")
    for number in range(3):
        labels = [f"{letter}-{number}" for letter in "ab"]
        for label in labels:
            project.tasks.work.delay(label, gate=f"go-{number}")
        for label in labels:
            project.wait_started(label)
        project.open_gate(f"go-{number}")


def test_p9_a_higher_priority_goes_first(project: Project) -> None:
    project.broker.pause(["celery"], by="the test")
    for priority in (0, 9, 5, 9, 0):
        project.tasks.work.apply_async([f"priority-{priority}"], priority=priority)
    project.worker("-c", "1")
    project.broker.resume(["celery"])
    project.wait_empty()
    assert [entry.label for entry in project.journal("start")] == [f"priority-{priority}" for priority in (9, 9, 5, 0, 0)]
