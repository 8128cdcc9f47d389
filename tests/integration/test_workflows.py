"""Workflows on real workers: however the members of a chord end, and however many they are, its body or its errback comes, once."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from celeriac import Signature, chain, chord, group
from celeriac.canvas import feed
from celeriac.exceptions import ChordError
from tests.support.engines import every_engine
from tests.support.fixtures import MakeProject
from tests.support.workers import Project, until

SUPPORT = Path(__file__).parents[1] / "support"
FLOWS = ("-I", "flows")


def flows_of(project: Project) -> Any:
    """The tasks of `flows.py`, in the project and in this process."""
    shutil.copy(SUPPORT / "flows.py", project.directory / "flows.py")
    assert project.tasks
    spec = spec_from_file_location("flows", project.directory / "flows.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["flows"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAILS = object()

endings: dict[str, tuple[Callable[[Any], Signature[Any]], Any]] = {
    "succeeds": (lambda flows: flows.number.s(7), 7),
    "wants no result": (lambda flows: flows.silent.s(7), 7),
    "raises": (lambda flows: flows.boom.s(), FAILS),
    "retries first": (lambda flows: flows.flaky.s(7), 7),
    "is ignored": (lambda flows: flows.ignored.s(7), None),
    "is rejected": (lambda flows: flows.rejected.s(7), FAILS),
    "has expired": (lambda flows: flows.number.s(7).set(expires=datetime(2020, 1, 1, tzinfo=UTC)), FAILS),
    "is killed each time": (lambda flows: flows.killed.s(7), FAILS),
    "is killed the first time": (lambda flows: flows.killed_at_first.s(7), 7),
    "is killed and may run once": (lambda flows: flows.killed_once.s(7), FAILS),
    "runs too long": (lambda flows: flows.too_long.s(7), FAILS),
    "is unknown": (lambda flows: flows.app.signature("nobody.knows", (7,)), FAILS),
    "is revoked": (lambda flows: flows.number.s(7).set(queue="nobody-listens"), FAILS),
    "is terminated": (lambda flows: flows.endless.s(7), FAILS),
    "replaces itself": (lambda flows: flows.replaced.s(7), 7),
    "replaces itself by a group": (lambda flows: flows.replaced_by_group.s(7), [7, 7]),
    "is a chain": (lambda flows: chain(flows.number.s(7), flows.number.s()), 7),
    "is a chain that fails": (lambda flows: chain(flows.boom.s(), flows.number.s()), FAILS),
    "is a chain that ends in a group": (lambda flows: chain(flows.number.s(7), group(flows.number.s(), flows.number.s())), [7, 7]),
    "is a chord": (lambda flows: chord([flows.number.s(7)], flows.first.s()), 7),
    "is a chord that fails": (lambda flows: chord([flows.boom.s()], flows.first.s()), FAILS),
}


def end_all(project: Project, flows: Any, size: int, names: list[str]) -> None:
    """Sends a chord of this size for each ending, in which the last member ends so, and waits until all of them have ended."""
    workers = [project.worker("-c", "2", *FLOWS, name=f"w{size}-{number}") for number in range(2)]
    sent: dict[str, Any] = {}
    for name in names:
        label = f"{size} {name}"
        make, _ = endings[name]
        header = [flows.number.s(value) for value in range(1, size)]
        header.insert(0, make(flows))
        sent[name] = chord(header, flows.body.s(label).on_error(flows.errback.s(label=label))).apply_async()
    if "is revoked" in sent:
        sent["is revoked"].parent[0].revoke()
        if project.home.engine == "rabbitmq":  # it cannot look into a queue: what is revoked ends when somebody takes it
            workers.append(project.worker("-c", "1", "-Q", "nobody-listens", *FLOWS))
    if "is terminated" in sent:
        until(lambda: project.journal("endless", "7"), "the endless one runs")
        sent["is terminated"].parent[0].revoke(terminate=True)
    for name, result in sent.items():
        value = result.get(timeout=90, propagate=False)
        _, expected = endings[name]
        if expected is FAILS:
            assert isinstance(value, ChordError), (name, value)
        else:
            assert value == size, (name, value)
    bodies = Counter(entry.label for entry in project.journal("body"))
    errbacks = Counter(entry.label for entry in project.journal("errback"))
    assert bodies == Counter(f"{size} {name}" for name in names if endings[name][1] is not FAILS)
    assert errbacks == Counter(f"{size} {name}" for name in names if endings[name][1] is FAILS)
    assert {entry.label: entry.arguments[1] for entry in project.journal("body")} == {
        f"{size} {name}": endings[name][1] for name in names if endings[name][1] is not FAILS
    }
    print(f"{size} members: {slowest_follow_up(project, size, sent):.3f} s at most from the last end to the body or the errback")
    project.wait_empty()
    until(lambda: not project.app.joins.joins([result.parent.id for result in sent.values()]), "the joins are forgotten")
    for worker in workers:
        worker.may_complain = True  # processes were killed in it
        assert worker.stop() == 0


def slowest_follow_up(project: Project, size: int, sent: dict[str, Any]) -> float:
    """The longest time, in seconds, between the end of a chord's last member and the start of what comes then."""
    started = {entry.label: entry.wall for what in ("body", "errback") for entry in project.journal(what)}
    longest = 0.0
    for name, result in sent.items():
        ids = [member.id for member in result.parent]
        records = (record for at in range(0, len(ids), 2000) for record in project.backend.fetch(ids[at : at + 2000]).values())
        ends = [record.date_done.timestamp() for record in records if record.date_done is not None]
        if ends:
            longest = max(longest, started[f"{size} {name}"] - max(ends))
    return longest


@every_engine()
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_p5_however_a_member_ends_the_chord_ends_once(make_project: MakeProject, size: int) -> None:
    project = make_project(task_unknown_expires=1.0)
    end_all(project, flows_of(project), size, list(endings))


@pytest.mark.chaos
@pytest.mark.skipif(not os.environ.get("CELERIAC_CHAOS"), reason="a long fault run: make chaos")
@every_engine(always=("sqlite", "redis", "postgresql"))
@pytest.mark.parametrize("ending", list(endings))
@pytest.mark.timeout(900)
def test_p5_a_hundred_thousand_members(make_project: MakeProject, ending: str) -> None:
    project = make_project(task_unknown_expires=1.0)
    end_all(project, flows_of(project), 100_000, [ending])


@every_engine()
def test_a_chord_of_nothing_runs_its_body_on_nothing(project: Project) -> None:
    flows = flows_of(project)
    project.worker("-c", "1", *FLOWS)
    assert chord([], flows.body.s("nothing")).apply_async().get(timeout=30) == 0
    assert [entry.arguments for entry in project.journal("body")] == [[0, None]]


@every_engine()
def test_chains_groups_and_nested_chords(project: Project) -> None:
    flows = flows_of(project)
    project.worker("-c", "2", *FLOWS)
    steps = [flows.step.s(label=str(n)) for n in range(5)]
    assert chain(*steps).apply_async().get(timeout=30) == 5
    assert group(flows.number.s(n) for n in range(50)).apply_async().get(timeout=30) == list(range(50))
    assert flows.nested("n").apply_async().get(timeout=30) == expected_of_nested()
    assert (group(flows.number.s(1), flows.number.s(2)) | flows.total.s() | flows.number.s()).apply_async().get(timeout=30) == 3
    assert flows.number.chunks([(n,) for n in range(10)], 3).apply_async().get(timeout=30) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert (flows.number.map([1, 2, 3]) | flows.total.s()).apply_async().get(timeout=30) == 6
    project.wait_empty()


def expected_of_nested() -> int:
    header = (1 + 3 * 1) + 2 + 1
    each = 1 + header
    return 1 + 2 * each


@every_engine()
def test_a_group_is_fed_no_faster_than_it_is_worked_off(project: Project) -> None:
    flows = flows_of(project)
    project.worker("-c", "1", *FLOWS)
    deepest = 0

    def members() -> Iterator[Any]:
        nonlocal deepest
        for value in range(3000):
            if value % 50 == 0:
                deepest = max(deepest, project.broker.depth(["celery"])["celery"].ready)
            yield flows.number.s(value)

    fed = feed(members(), flows.total.s(), window=200, app=project.app)
    assert fed.sent == 3000 and fed.result is not None
    assert fed.result.get(timeout=30) == sum(range(3000))
    assert 0 < deepest <= 400, "about 200, as far as an engine knows how many are ready"
    until(lambda: fed.ended() is None, "the join is forgotten")
    counted = feed((flows.boom.s() for _ in range(10)), flows.body.si("after", "fed"), app=project.app)
    assert counted.result is not None
    assert isinstance(counted.result.get(timeout=30, propagate=False), ChordError)
    assert feed([], flows.total.s(), app=project.app).result.get(timeout=30) == 0  # type: ignore[union-attr]
    project.wait_empty()


@every_engine()
def test_a_generator_that_fails_fails_its_body(project: Project) -> None:
    flows = flows_of(project)
    project.worker("-c", "1", *FLOWS)
    body = flows.total.s()
    result = body.freeze()

    def members() -> Iterator[Any]:
        yield flows.number.s(1)
        raise OSError("the list of members ends here")

    with pytest.raises(OSError, match="ends here"):
        feed(members(), body, app=project.app)
    assert "ends here" in repr(result.get(timeout=30, propagate=False))
