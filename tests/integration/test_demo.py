"""The demo checks itself; here is checked that it does, and that nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(output: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, "-u", "-m", "examples.demo", "--output", str(output)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes_that_name(path: Path) -> list[str]:
    """Command lines of living processes that work in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == path:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_every_job_comes_out_as_it_should(tmp_path: Path) -> None:
    output = tmp_path / "out"
    demo = start(output)
    text, _ = demo.communicate(timeout=110)
    assert demo.returncode == 0, text
    assert "WRONG" not in text and "kill -9" in text, text
    assert len(list((output / "thumbnails").glob("*.thumb.png"))) == 12
    assert processes_that_name(output) == []


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    output = tmp_path / "out"
    demo = start(output)
    assert demo.stdout is not None
    lines = []
    for line in demo.stdout:
        lines.append(line)
        if "PROGRESS" in line:
            break
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, "".join(lines) + rest
    deadline = time.monotonic() + 5
    while processes_that_name(output) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_that_name(output) == []


def test_it_spares_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    demo = start(tmp_path)
    text, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "was not made by this demo" in text
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
