"""A program that starts the command line itself: `app.start()` and `app.worker_main()`, as Celery's tutorials end proj/celery.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac import Celeriac

PROGRAM = """
import os, sys
from celeriac import Celery

app = Celery("tasks", broker="sqlite:///queue.db", backend="rpc://")

@app.task
def add(x, y):
    return x + y

if __name__ == "__main__":
    match sys.argv[1]:
        case "worker":
            code = app.worker_main(argv=["worker", "--loglevel=INFO", "-c", "1"])
        case "call":
            result = add.delay(4, 4)
            print(add.name, result.get(timeout=30))
            code = 0
        case _:
            code = app.start()
    print("code", code)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "program.py").write_text(PROGRAM)
    return {**{k: v for k, v in os.environ.items() if not k.startswith(("CELERY", "CELERIAC"))}, "PYTHONPATH": os.pathsep.join(sys.path)}


def _run(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "program.py", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_program_that_is_its_own_worker(tmp_path: Path, environment: dict[str, str]) -> None:
    worker = subprocess.Popen([sys.executable, "program.py", "worker"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        called = _run(tmp_path, environment, "call")
        assert called.stdout.splitlines() == ["tasks.add 8", "code 0"], called.stderr
    finally:
        worker.send_signal(signal.SIGTERM)
        output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert output.splitlines()[-1] == "code 0"


def test_start_takes_the_programs_own_arguments(tmp_path: Path, environment: dict[str, str]) -> None:
    done = _run(tmp_path, environment, "report")
    assert done.returncode == 0, done.stderr
    assert "queue.db" in done.stdout
    assert done.stdout.splitlines()[-1] == "code 0"
    nobody = _run(tmp_path, environment, "status")
    assert nobody.returncode != 0
    assert "code" not in nobody.stdout


def test_worker_main_wants_the_word_worker() -> None:
    with pytest.raises(ValueError, match="'worker' must be among the arguments"):
        Celeriac("x").worker_main(["--loglevel=INFO"])
