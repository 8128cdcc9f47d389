"""The wheel, installed into an environment of its own: what a person gets who types `pip install celeriac`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = {"redis", "postgresql", "rabbitmq", "django", "gevent", "eventlet", "dashboard", "all"}

pytestmark = pytest.mark.timeout(300)


def _run(*command: str | Path, folder: Path, more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_", "PYTHON"))}
    return subprocess.run(
        [str(word) for word in command], cwd=folder, env={**kept, **(more or {})}, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, on a machine that can build and install at all."""
    folder = tmp_path_factory.mktemp("wheel")
    needed = ["hatchling>=1.24", "msgspec>=0.19", "click>=8.1"]
    asked = _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder / "asked", *needed, folder=folder)
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        pytest.skip(f"no package index gives {', '.join(needed)}: {last}")
    return folder


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    built = _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "built", ROOT, folder=folder)
    assert built.returncode == 0, built.stderr
    (found,) = (folder / "built").glob("celeriac-*.whl")
    return found


@pytest.fixture(scope="module")
def python(folder: Path, wheel: Path) -> Iterator[Path]:
    """The Python of a new environment in which nothing but the wheel and what it needs is installed."""
    environment = folder / "environment"
    made = _run(sys.executable, "-m", "venv", environment, folder=folder)
    assert made.returncode == 0, made.stderr
    python = environment / "bin" / "python"
    installed = _run(python, "-m", "pip", "install", "--quiet", wheel, folder=folder)
    assert installed.returncode == 0, installed.stderr
    yield python


def test_what_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(next(archive.read(name).decode() for name in names if name.endswith("/METADATA")))
    sources = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "celeriac").rglob("*")
        if path.suffix in (".py", ".typed", ".html", ".js", ".css")
    }
    packed = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert "celeriac/py.typed" in packed
    assert sources <= packed
    assert {name for name in packed if name.endswith(".py")} <= sources, "the wheel holds what is not in src/"
    assert metadata["License-Expression"] == "BSD-3-Clause" or "BSD" in str(metadata["License"])
    assert any(name.endswith("/LICENSE") for name in names)
    assert set(metadata.get_all("Provides-Extra") or ()) >= EXTRAS
    needed = [line for line in metadata.get_all("Requires-Dist") or () if "extra ==" not in line]
    assert sorted(line.partition(">")[0] for line in needed) == ["click", "msgspec"]


def test_the_extras_can_be_installed_together(wheel: Path, python: Path, folder: Path) -> None:
    report = folder / "report.json"
    asked = _run(python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report, f"{wheel}[all]", folder=folder)
    if asked.returncode != 0 and "No matching distribution" not in asked.stderr and "ResolutionImpossible" not in asked.stderr:
        pytest.skip(f"the package index does not answer: {asked.stderr.strip().splitlines()[-1:]}")
    assert asked.returncode == 0, asked.stderr
    names = {found["metadata"]["name"].lower() for found in json.loads(report.read_text())["install"]}
    assert names >= {"redis", "psycopg", "django", "gevent", "eventlet"}


def test_the_command_and_the_module(python: Path, folder: Path) -> None:
    for command in ([python.with_name("celeriac")], [python, "-m", "celeriac"]):
        helped = _run(*command, "--help", folder=folder)
        assert helped.returncode == 0, helped.stderr
        assert "worker" in helped.stdout and "doctor" in helped.stdout
    version = _run(python.with_name("celeriac"), "--version", folder=folder)
    assert version.returncode == 0 and "0." in version.stdout


def test_a_task_runs_with_nothing_else_installed(python: Path, folder: Path) -> None:
    (folder / "tasks.py").write_text(
        "from celeriac import Celeriac\napp = Celeriac('tasks')\n\n@app.task\ndef add(x, y):\n    return x + y\n", encoding="utf-8"
    )
    worker = subprocess.Popen([python.with_name("celeriac"), "-A", "tasks", "worker", "-c", "1"], cwd=folder, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        called = _run(python, "-c", "import tasks; print(tasks.add.delay(4, 4).get(timeout=60))", folder=folder)
        assert called.stdout.strip() == "8", called.stderr
    finally:
        worker.terminate()
        assert worker.wait(30) == 0


def test_type_checkers_see_the_types(python: Path, folder: Path) -> None:
    pytest.importorskip("mypy")
    (folder / "typed.py").write_text(
        "from celeriac import Celeriac\napp = Celeriac('typed')\n\n@app.task\ndef add(x: int, y: int) -> int:\n    return x + y\n\n"
        "reveal_type(add.delay(1, 2).get())\nadd.delay('x')\n",
        encoding="utf-8",
    )
    checked = _run(
        sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", os.devnull, "typed.py", folder=folder
    )
    assert 'Revealed type is "int"' in checked.stdout.replace("builtins.int", "int"), checked.stdout + checked.stderr
    assert "[arg-type]" in checked.stdout or "[call-arg]" in checked.stdout
