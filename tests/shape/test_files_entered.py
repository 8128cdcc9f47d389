"""The path of one call is short: one `delay()` enters at most six of our files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import celeriac
from celeriac import Celeriac, shared_task
from celeriac.tasks import registry

HOME = str(Path(celeriac.__file__).parent)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = registry.current.app
    monkeypatch.setattr(registry, "_shared", {})
    yield
    registry.set_default_app(before)


def files_entered(function: Any) -> tuple[set[str], int]:
    files: set[str] = set()
    calls = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            files.add(frame.f_code.co_filename[len(HOME) + 1 :])
            calls += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return files, calls


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
@pytest.mark.parametrize("kind", ["app", "shared"])
def test_one_delay_enters_at_most_six_files(engine: str, kind: str, tmp_path: Path) -> None:
    app = Celeriac("proj", broker="memory://" if engine == "memory" else f"sqlite:///{tmp_path}/x.db")
    decorator = app.task if kind == "app" else shared_task

    @decorator
    def add(x: int, y: int) -> int:
        return x + y

    for n in range(3):
        add.delay(n, 2)
    files, calls = files_entered(lambda: add.delay(1, y=2))
    app.close()
    assert files <= {
        "tasks/task.py", "tasks/producer.py", "core/serialize.py", "core/ids.py", "tasks/result.py", f"engines/{engine}.py",
    }  # fmt: skip
    assert len(files) <= 6, files
    assert calls <= 60
