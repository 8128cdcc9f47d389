"""A Django project in a directory of its own, with its real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .workers import PATIENCE_SECONDS, SOURCES, until

TEMPLATE = Path(__file__).with_name("django_site")


class DjangoProject:
    """`settings` go over those of `django_site/config/settings.py`."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self.directory = directory
        shutil.copytree(TEMPLATE, directory, ignore=shutil.ignore_patterns("__pycache__"))
        (directory / "settings.json").write_text(json.dumps(dict(settings), default=str))
        self._started: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str, fails: bool = False) -> str:
        """`manage.py …`: what it prints."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert bool(done.returncode) == fails, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def python(self, source: str) -> Any:
        """Runs a program that has Django set up; what it prints, as JSON."""
        prelude = "import os, json, django; os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'config.settings'); django.setup()\n"
        done = subprocess.run(
            [sys.executable, "-c", prelude + source],
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or "null")

    def start(self, *command: str, ready: str) -> subprocess.Popen[bytes]:
        """Starts a process that goes on, and waits until its log has this word."""
        log_path = self.directory / f"process-{len(self._started) + 1}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)

        def is_ready() -> bool:
            text = log_path.read_text(errors="replace")
            assert process.poll() is None, f"it ended with {process.returncode}:\n{text}"
            return ready in text

        until(is_ready, f"{' '.join(command)} is ready")
        return process

    def worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """`manage.py celeriac worker …`, ready."""
        return self.start("manage.py", "celeriac", "worker", "-l", "info", *arguments, ready="ready.")

    def log(self) -> str:
        """What all processes have said so far."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.directory.glob("process-*.log")))

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._started:
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def environment(self) -> dict[str, str]:
        """Of its processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_", "DJANGO_"))}
        return {**kept, "PYTHONPATH": str(SOURCES), "PYTHONDONTWRITEBYTECODE": "1"}


MakeDjangoProject = Callable[..., DjangoProject]


def administer(database: dict[str, Any], statement: str) -> list[Any]:
    """Asks the server of this entry of DATABASES something; `%s` is the database's name."""
    import psycopg

    with psycopg.connect(
        host=database["HOST"],
        port=database["PORT"],
        user=database["USER"],
        password=database["PASSWORD"],
        dbname="postgres",
        autocommit=True,
    ) as connection:
        return connection.execute(statement, [database["NAME"]]).fetchall()  # type: ignore[arg-type]


def close_all(database: dict[str, Any]) -> int:
    """The server ends all sessions in this database, and has ended them; returns how many."""
    ended = {pid for pid, _ in administer(database, "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s")}
    until(
        lambda: not ended & {pid for (pid,) in administer(database, "SELECT pid FROM pg_stat_activity WHERE datname = %s")},
        "they have ended",
    )
    return len(ended)
