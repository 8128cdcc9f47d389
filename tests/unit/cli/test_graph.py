"""`celeriac graph`, and `why` of a workflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from celeriac.contracts.engine import Engine

from .conftest import Run


@pytest.fixture
def flow(project: Path, engine: Engine, run: Run) -> Any:
    assert run("-A", "proj", "graph", "nobody").exit_code == 1
    app = sys.modules["proj.celery"].app
    from celeriac import chord
    from celeriac.canvas import start

    pay = app.tasks["shop.pay"]
    started = start(chord([pay.s(1), pay.s(2)], pay.s()))
    yield started
    app.close()


def test_a_flow_is_drawn(flow: Any, run: Run, tmp_path: Path) -> None:
    drawn = run("-A", "proj", "graph", flow.id).stdout
    assert "chord of 2" in drawn and "then PENDING  shop.pay()" in drawn and "0 of 3 have ended" in drawn
    assert run("-A", "proj", "graph", flow.id, "--kind", "mermaid").stdout.startswith("flowchart LR")
    run("-A", "proj", "graph", flow.id, "--kind", "svg", "-o", "flow.svg")
    assert ElementTree.parse(tmp_path / "flow.svg").getroot().tag.endswith("svg")


def test_an_unknown_flow_is_an_error(run: Run, project: Path) -> None:
    failed = run("-A", "proj", "graph", "nobody")
    assert failed.exit_code == 1 and "Nothing is kept of a workflow 'nobody'" in failed.output


def test_why_names_the_members_that_are_missing(flow: Any, run: Run) -> None:
    said = run("-A", "proj", "why", flow.id)
    assert said.exit_code == 0
    assert "0 of 3 have ended" in said.stdout and "It waits for shop.pay(2) [" in said.stdout and "No worker is alive" in said.stdout
