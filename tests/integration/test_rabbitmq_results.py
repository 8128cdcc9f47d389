"""Workers on RabbitMQ, with their results in another engine, sent to who called, or nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from celeriac import chord, group
from tests.support.engines import Homes
from tests.support.fixtures import MakeProject
from tests.support.workers import Project

KEEPERS = ("redis", "postgresql", "sqlite")


def results_in(homes: Homes, backend: str, directory: Path) -> dict[str, Any]:
    """Settings of a result backend."""
    if backend not in KEEPERS:
        return {"result_backend": backend, "result_backend_transport_options": {}}
    given = homes[backend].settings(directory)
    return {"result_backend": given["broker_url"], "result_backend_transport_options": given.get("broker_transport_options", {})}


@pytest.fixture
def project(homes: Homes, make_project: MakeProject, tmp_path: Path, request: pytest.FixtureRequest) -> Project:
    return make_project(**results_in(homes, request.param, tmp_path))


@pytest.mark.parametrize("engine", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("project", [*KEEPERS, "rpc://"], indirect=True)
def test_calls_results_retries_and_chords(project: Project) -> None:
    proj = project.tasks
    project.worker("-c", "2")
    assert proj.add.delay(2, 3).get(timeout=60) == 5
    assert group(proj.add.s(n, n) for n in range(20)).apply_async().get(timeout=60) == [2 * n for n in range(20)]
    assert proj.flaky.delay("retried", failures=2).get(timeout=60) == "retried"
    failed = proj.fail.delay("failed")
    with pytest.raises(Exception, match="as asked"):
        failed.get(timeout=60)
    assert (proj.add.s(1, 1) | proj.add.s(3)).apply_async().get(timeout=60) == 5
    if project.settings["result_backend"] != "rpc://":  # nobody would count its members
        members = [proj.add.s(n, n) for n in range(10)]
        assert chord(members, proj.after.s()).apply_async().get(timeout=60)
    project.wait_empty()


@pytest.mark.parametrize("engine", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize("project", ["disabled"], indirect=True)
def test_no_results_at_all(project: Project) -> None:
    proj = project.tasks
    project.worker("-c", "2")
    call = proj.work.s("first").set(link=proj.after.si("second")).delay()
    proj.flaky.delay("retried", failures=1)
    project.wait_started("second")
    project.wait_started("retried", 2)
    project.wait_empty()
    with pytest.raises(Exception, match="No results are kept"):
        call.get(timeout=1)
