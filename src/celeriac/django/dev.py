"""`manage.py celeriac dev`: the web server, and a worker with beat that begins again when a Python file changes, in one terminal.

Each line says who wrote it. Ctrl-C ends everything; when one of them ends by itself that is told, and it begins again with the next change of a file.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import click

from ..cli.command import Command

LOOK_SECONDS = 0.5
"""How often files are looked at."""
END_SECONDS = 8.0
"""How long the processes may take to end."""
NOT_OURS = {"node_modules", "__pycache__", "site-packages"}
COLORS = {"web": "cyan", "worker": "green", "dev": "yellow"}


@click.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="\b\nExamples:\n  manage.py celeriac dev\n  manage.py celeriac dev --web 0.0.0.0:8080 -c 4 -Q fast,slow\n\nOptions that are not listed are those of the worker.",
)
@click.option("--web", "address", default="8000", show_default=True, metavar="[ADDRESS:]PORT", help="Where runserver listens.")
@click.option("--no-web", is_flag=True, help="Only the worker.")
@click.pass_context
def dev(context: click.Context, address: str, no_web: bool) -> None:
    """For development: runserver, and a worker with beat that reloads your code, in one terminal."""
    manage = [sys.executable, *sys.orig_argv[1 : sys.orig_argv.index("celeriac")]]
    loglevel = [] if any(argument.startswith(("-l", "--loglevel")) for argument in context.args) else ["-l", "info"]
    worker = Part("worker", [*manage, "celeriac", "worker", "-B", "--soft-shutdown-timeout", "2", *loglevel, *context.args])
    web = [] if no_web else [Part("web", [*manage, "runserver", address], reloads_itself=True)]
    sys.exit(run([*web, worker], os.getcwd()))


class Part:
    """One of the processes, with all below it in a process group of its own: Ctrl-C in the terminal is heard by us alone."""

    def __init__(self, name: str, command: Sequence[str], *, reloads_itself: bool = False) -> None:
        self.name = name
        self.reloads_itself = reloads_itself
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        threading.Thread(target=self._pass_on, args=(self._process,), daemon=True).start()

    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Tells it to end. The worker tells its processes itself; runserver does not."""
        if self._process is not None and self.runs():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM) if self.reloads_itself else self._process.terminate()

    def end(self, deadline: float) -> None:
        """Waits for its end, and makes it; nothing of it is left."""
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            _say(self.name, line.decode(errors="replace").rstrip("\n"))


def run(parts: Sequence[Part], directory: str) -> int:
    """Until SIGINT, SIGTERM or the end of the terminal; a second one ends everything at once. Returns the exit code."""
    alarm, ring = os.pipe()  # which a signal handler may write to at any moment, as it may not set an Event

    def told_to_end(seconds: float) -> bool:
        return bool(select.select([alarm], (), (), seconds)[0] and os.read(alarm, 1))

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: os.write(ring, b"!"))
    files = python_files(directory)
    told: set[str] = set()
    for part in parts:
        part.start()
    while not told_to_end(LOOK_SECONDS):
        now = python_files(directory)
        changed = sorted(path for path in files.keys() | now.keys() if files.get(path) != now.get(path))
        files = now
        for part in parts:
            if changed and not (part.reloads_itself and part.runs()):
                _say("dev", f"{', '.join(os.path.relpath(path, directory) for path in changed)[:200]} changed; {part.name} begins again.")
                part.stop()
                part.end(time.monotonic() + END_SECONDS)
                part.start()
                told.discard(part.name)
            elif part.exit_code() is not None and part.name not in told:
                _say("dev", f"{part.name} ended with exit code {part.exit_code()}. It begins again when a file changes.")
                told.add(part.name)
    for part in parts:
        part.stop()
    deadline = time.monotonic() + END_SECONDS
    while any(part.runs() for part in parts) and time.monotonic() < deadline and not told_to_end(0.02):
        pass
    for part in parts:
        part.end(0.0)
    return 0


def python_files(directory: str) -> dict[str, int]:
    """The Python files below, hidden folders and virtual environments left out, and when each was changed."""
    found: dict[str, int] = {}
    folders = [directory]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            inside = list(entries)
            if any(entry.name == "pyvenv.cfg" for entry in inside):
                continue
            for entry in inside:
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.startswith(".") and entry.name not in NOT_OURS:
                        folders.append(entry.path)
                elif entry.name.endswith(".py"):
                    found[entry.path] = entry.stat().st_mtime_ns
    return found


_saying = threading.Lock()


def _say(who: str, line: str) -> None:
    with _saying, suppress(OSError):  # the terminal may be gone
        click.echo(f"{click.style(f'{who:6} |', fg=COLORS[who])} {line}")
