"""examples/shop checks itself, over HTTP and with real processes; here is checked that it does, and that nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import Homes
from tests.support.workers import until

ROOT = Path(__file__).parents[2]


def start(output: Path, broker: str = "", **environment: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = [sys.executable, "-u", str(ROOT / "examples" / "shop" / "demo.py"), "--output", str(output), "--broker", broker]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes_of(output: Path) -> list[str]:
    """Living processes whose data are in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"SHOP_DATA={output}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def check(output: Path, demo: subprocess.Popen[str]) -> None:
    text, _ = demo.communicate(timeout=590)
    assert demo.returncode == 0, text
    assert "WRONG" not in text, text
    until(lambda: not processes_of(output), "nothing runs any more")


@pytest.mark.timeout(600)
def test_everything_in_the_shop_comes_out_as_it_should(tmp_path: Path) -> None:
    check(tmp_path / "out", start(tmp_path / "out"))


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["sqlite", "redis", "postgresql", "rabbitmq"])
def test_so_it_does_with_another_broker(tmp_path: Path, homes: Homes, engine: str) -> None:
    check(tmp_path / "out", start(tmp_path / "out", str(homes[engine].settings(tmp_path)["broker_url"])))


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_so_it_does_on_postgresql_alone(tmp_path: Path, postgresql_database: dict[str, Any]) -> None:
    names = {"NAME": "DB", "USER": "USER", "PASSWORD": "PASSWORD", "HOST": "HOST", "PORT": "PORT"}
    check(tmp_path / "out", start(tmp_path / "out", **{f"POSTGRES_{name}": str(postgresql_database[key]) for key, name in names.items()}))


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    output = tmp_path / "out"
    demo = start(output)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "celeriac beat" in line:
            break
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=100)
    assert demo.returncode == 130, rest
    until(lambda: not processes_of(output), "nothing runs any more")


def test_it_spares_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    demo = start(tmp_path)
    text, _ = demo.communicate(timeout=100)
    assert demo.returncode == 1
    assert "was not made by this demo" in text
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
