"""The command line as people use it: real processes, a real worker, a real terminal's exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = """
import os, time
from celeriac import Celeriac
app = Celeriac("proj", broker="sqlite:///{folder}/engine.db")

@app.task
def add(x, y):
    return x + y

@app.task(bind=True)
def hold(self, path):
    self.update_state(state="PROGRESS", meta={{"held": True}})
    while not os.path.exists(path):
        time.sleep(0.02)
    return "let go"
"""


class Shell:
    """A folder with a project, and the command line in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_"))},
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.started: list[subprocess.Popen[str]] = []
        (folder / "proj").mkdir()
        (folder / "proj" / "__init__.py").touch()
        (folder / "proj" / "celery.py").write_text(PROJECT.format(folder=folder))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "celeriac", *arguments]

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def json(self, *arguments: str) -> object:
        return json.loads(self.run("-A", "proj", *arguments, "--json").stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        output = (self.folder / f"output{len(self.started)}").open("w")
        with output:
            process = subprocess.Popen(
                self.command(*arguments), cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT, text=True
            )
        self.started.append(process)
        return process

    def output(self, number: int = 0) -> str:
        return (self.folder / f"output{number}").read_text()

    def wait_for(self, condition: Callable[[], object], timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(self.output(number) for number in range(len(self.started)))
                pytest.fail(f"It did not come in {timeout} s. The workers said:\n{logs}")
            time.sleep(0.05)

    def wait_for_worker(self) -> None:
        self.wait_for(lambda: self.run("-A", "proj", "status").returncode == 0)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    for process in shell.started:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_task_from_call_to_result(shell: Shell) -> None:
    worker = shell.start("-A", "proj", "worker", "-c", "1", "-l", "info")
    shell.wait_for_worker()
    sum_of_both = shell.run("-A", "proj", "call", "proj.celery.add", "-a", "[2, 3]", "--wait", "30")
    assert (sum_of_both.returncode, sum_of_both.stdout) == (0, "5\n")
    door = shell.folder / "door"
    id = shell.run("-A", "proj", "call", "proj.celery.hold", "-a", json.dumps([str(door)])).stdout.strip()
    shell.wait_for(lambda: shell.run("-A", "proj", "result", id).stderr.startswith("PROGRESS"))
    why = shell.json("why", id)
    assert isinstance(why, dict)
    assert (why["state"], why["task"]) == ("running", "proj.celery.hold")
    assert why["facts"]["pid"] and why["facts"]["started_at"]
    active = shell.json("inspect", "active", "-t", "20")
    assert isinstance(active, dict)
    ((info,),) = active.values()
    assert info["id"] == id
    behind = shell.run("-A", "proj", "call", "proj.celery.add", "-a", "[1, 1]").stdout.strip()
    assert shell.json("why", behind)["state"] in ("waiting", "reserved")  # type: ignore[index]
    assert shell.run("-A", "proj", "doctor").returncode == 0
    door.touch()
    assert shell.run("-A", "proj", "result", id, "--wait", "30").stdout == "let go\n"
    assert shell.run("-A", "proj", "why", id).stdout.startswith("succeeded")
    assert shell.run("-A", "proj", "control", "shutdown").returncode == 0
    assert worker.wait(30) == 0
    assert shell.run("-A", "proj", "status").returncode == 69


def test_terminate_stops_what_runs(shell: Shell) -> None:
    shell.start("-A", "proj", "worker", "-c", "1")
    shell.wait_for_worker()
    id = shell.run("-A", "proj", "call", "proj.celery.hold", "-a", json.dumps([str(shell.folder / "never")])).stdout.strip()
    shell.wait_for(lambda: shell.run("-A", "proj", "result", id).stderr.startswith("PROGRESS"))
    assert shell.run("-A", "proj", "control", "terminate", "SIGTERM", id).returncode == 0
    shell.wait_for(lambda: shell.run("-A", "proj", "result", id).stderr.startswith("REVOKED"))
    assert shell.run("-A", "proj", "why", id).stdout.startswith("revoked")


def test_pidfile_refuses_a_second_start_and_is_replaced_after_a_kill(shell: Shell) -> None:
    file = shell.folder / "w.pid"
    first = shell.start("-A", "proj", "worker", "-c", "1", f"--pidfile={file}")
    shell.wait_for_worker()
    assert file.read_text() == f"{first.pid}\n"
    second = shell.run("-A", "proj", "worker", "-c", "1", "-n", "second@%h", f"--pidfile={file}")
    assert second.returncode == 73
    assert str(first.pid) in second.stderr
    first.kill()
    first.wait(10)
    third = shell.start("-A", "proj", "worker", "-c", "1", f"--pidfile={file}")
    shell.wait_for(lambda: file.read_text() == f"{third.pid}\n")
    shell.wait_for_worker()
    third.send_signal(signal.SIGTERM)
    assert third.wait(30) == 0
    assert not file.exists()


def test_detach(shell: Shell) -> None:
    began = shell.run(
        "-A",
        "proj",
        "worker",
        "-c",
        "1",
        "-l",
        "info",
        "-D",
        "-n",
        "bg@%h",
        f"--pidfile={shell.folder}/%n.pid",
        f"--logfile={shell.folder}/%n.log",
    )
    assert began.returncode == 0, began.stderr
    file = shell.folder / "bg.pid"
    pid = int(file.read_text())
    try:
        shell.wait_for_worker()
        assert os.getsid(pid) != os.getsid(0)
        assert "ready." in (shell.folder / "bg.log").read_text()
        again = shell.run("-A", "proj", "worker", "-D", "-n", "bg@%h", f"--pidfile={file}")
        assert again.returncode == 73 and str(pid) in again.stderr
    finally:
        os.kill(pid, signal.SIGTERM)
        shell.wait_for(lambda: not alive(pid))
    assert not file.exists()


def test_detach_tells_the_terminal_what_went_wrong(shell: Shell) -> None:
    (shell.folder / "proj" / "celery.py").write_text("import no_such_package_at_all\n")
    began = shell.run("-A", "proj", "worker", "-D")
    assert began.returncode == 2
    assert "No module named 'no_such_package_at_all'" in began.stderr


def test_detach_passes_on_the_exit_code_of_what_it_could_not_use(shell: Shell) -> None:
    (shell.folder / "engine.db").write_text("no database at all " * 50)
    began = shell.run("-A", "proj", "worker", "-D", "-q")
    assert began.returncode == 69 and "not an SQLite database" in began.stderr
    wrong = shell.run("-A", "proj", "-b", "nosuch://engine", "worker", "-D", "-q")
    assert wrong.returncode == 78 and "nosuch" in wrong.stderr


def test_an_app_that_does_not_import(shell: Shell) -> None:
    (shell.folder / "proj" / "celery.py").write_text("def boom():\n    raise RuntimeError('the real reason')\nboom()\n")
    for arguments in (["worker"], ["status"], ["shell"]):
        result = shell.run("-A", "proj", *arguments)
        assert result.returncode == 2
        assert "RuntimeError: the real reason" in result.stderr
        assert "celeriac/cli" not in result.stderr


def test_spawned_processes_find_the_app_and_its_settings_again(shell: Shell) -> None:
    (shell.folder / "elsewhere.py").write_text("result_expires = 77\n")
    text = PROJECT.format(folder=shell.folder) + "\n@app.task\ndef kept():\n    return app.conf.result_expires\n"
    (shell.folder / "proj" / "celery.py").write_text(text)
    shell.start("-A", "proj", "--config", "elsewhere", "worker", "-c", "1", "--pool-start-method", "spawn")
    shell.wait_for_worker()
    result = shell.run("-A", "proj", "call", "proj.celery.kept", "--wait", "30")
    assert float(result.stdout) == 77


def test_starting_is_quick(shell: Shell) -> None:
    """--help imports no engine and no worker."""
    code = "import sys; from celeriac.cli.main import cli; cli.main(['--help'], standalone_mode=False); print([m for m in sys.modules if 'celeriac' in m])"
    result = subprocess.run([sys.executable, "-c", code], env=shell.environment, capture_output=True, text=True, timeout=60, check=True)
    for room in ("celeriac.engines", "celeriac.worker"):
        assert room not in result.stdout
