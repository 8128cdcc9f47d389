"""A project in a folder of its own, and a way to call the command line in it, in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from celeriac.cli.main import cli
from celeriac.contracts.engine import Engine
from celeriac.engines import open_engine
from celeriac.tasks import registry

Run = Callable[..., Result]
PATIENT = {command: {"timeout": 40.0} for command in ("status", "inspect", "control", "why")}
"""A second is enough for an answer only where the machine is at rest."""

PROJECT = """
from celeriac import Celeriac
app = Celeriac("proj", broker="sqlite:///{folder}/engine.db")

@app.task(name="shop.pay")
def pay(x, y=0):
    return x + y
"""


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command changes in its process is as it was afterwards."""
    modules, path, default = set(sys.modules), list(sys.path), type(registry.current).app
    with mock.patch.dict(os.environ):
        for name in ("CELERIAC_APP", "CELERY_APP", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
            os.environ.pop(name, None)
        yield
    sys.path[:] = path
    registry.set_current_app(None)
    registry.set_default_app(default)
    for name in set(sys.modules) - modules:
        if not name.startswith("celeriac"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(folder: Path) -> Path:
    """`proj/celery.py` with an app, a task and an SQLite engine."""
    (folder / "proj").mkdir()
    (folder / "proj" / "__init__.py").touch()
    (folder / "proj" / "celery.py").write_text(PROJECT.format(folder=folder))
    return folder


@pytest.fixture
def engine(project: Path) -> Iterator[Engine]:
    """The project's engine, as another process would have it."""
    opened = open_engine(f"sqlite:///{project}/engine.db")
    yield opened
    opened.close()


@pytest.fixture
def run() -> Run:
    """`run("-A", "proj", "status")` → what it printed and its exit code."""

    def call(*arguments: str, input: str | None = None) -> Result:
        result = CliRunner().invoke(cli, list(arguments), input=input, prog_name="celeriac", default_map=PATIENT)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """The same with --json: what it printed, decoded."""
    return lambda *arguments: json.loads(run("-A", "proj", *arguments, "--json").stdout)
