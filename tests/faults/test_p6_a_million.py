"""P6: waiting costs nothing, also when a million wait: worker memory, the immediate ones beside them, and the rush when many come due."""

from __future__ import annotations

import time

import pytest
from msgspec import structs

from tests.faults.test_p6_waiting import private_bytes
from tests.support.engines import every_engine
from tests.support.workers import Project, until

pytestmark = [pytest.mark.promise(6), pytest.mark.chaos, pytest.mark.timeout(1800), every_engine(engines=("sqlite", "redis", "postgresql"))]

MILLION = 1_000_000
BATCH = 2000
RUSH = 15_000
A_SECOND = 1000
"""So many of the rush come due."""
SLACK_SECONDS = 1.0
"""What a busy machine may add."""


def test_p6_a_million_wait_and_nobody_notices(project: Project) -> None:
    worker = project.worker("-c", "2")
    for _ in range(500):
        project.tasks.add.delay(1, 1)
    project.wait_empty()
    before = private_bytes(worker)
    model = project.app.producer.message("proj.work", ("later",), {}, task=project.tasks.work, options={"countdown": 3600}, parent=None)
    begun = time.monotonic()
    for start in range(0, MILLION, BATCH):
        project.broker.publish([structs.replace(model, id=f"waiting-{number}") for number in range(start, start + BATCH)])
    published_seconds = time.monotonic() - begun

    begun = time.monotonic()
    results = [project.tasks.add.delay(number, 1) for number in range(100)]
    assert [result.get(timeout=60) for result in results] == list(range(1, 101))
    immediate_seconds = time.monotonic() - begun
    grown_bytes = private_bytes(worker) - before
    print(
        f"{MILLION} published in {published_seconds:.1f} s; 100 beside them done in {immediate_seconds:.2f} s; the worker grew by {grown_bytes / 1e6:.1f} MB"
    )

    lateness = rush(project)
    p99 = lateness[int(len(lateness) * 0.99)]
    print(
        f"{RUSH} came due, {A_SECOND} a second: {lateness[len(lateness) // 2]:.3f} s late by median, p99 {p99:.3f} s, worst {lateness[-1]:.3f} s"
    )

    assert project.broker.depth(["celery"])["celery"].scheduled == MILLION
    assert grown_bytes < 20_000_000
    assert len(lateness) == RUSH
    assert lateness[0] >= 0.0, "nothing starts before its time"
    assert immediate_seconds < 2.0 + SLACK_SECONDS
    assert p99 < 1.0 + SLACK_SECONDS


def rush(project: Project) -> list[float]:
    """How late those ended (which takes no time) that came due at a steady rate, sorted."""
    model = project.app.producer.message("proj.add", (1, 1), {}, task=project.tasks.add, options={"countdown": 1}, parent=None)
    first = time.time() + 10.0
    due: dict[str, float] = {}
    for start in range(0, RUSH, BATCH):
        batch = []
        now = time.time()
        for number in range(start, min(start + BATCH, RUSH)):
            due[f"rush-{number}"] = first + number / A_SECOND
            delay = due[f"rush-{number}"] - now
            batch.append(structs.replace(model, id=f"rush-{number}", delay_seconds=delay, eta=None))
        project.broker.publish(batch)
    assert time.time() < first, "they were published in time"

    def all_ran() -> bool:
        depth = project.broker.depth(["celery"])["celery"]
        return (depth.ready, depth.scheduled, depth.leased) == (0, MILLION, 0)

    until(all_ran, "all have run", seconds=10.0 + RUSH / A_SECOND + 120.0)
    ids = list(due)
    records = {id: record for start in range(0, RUSH, BATCH) for id, record in project.backend.fetch(ids[start : start + BATCH]).items()}
    return sorted(record.date_done.timestamp() - due[id] for id, record in records.items() if record.date_done)
