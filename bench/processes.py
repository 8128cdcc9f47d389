"""Starting processes, measuring them through /proc, and stopping exactly those that were started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

Birth = tuple[int, str]
"""A process id and the moment it was born: so that a reused id is never taken for the process that had it before."""


@contextlib.contextmanager
def running(
    command: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path, end: signal.Signals = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own (Ctrl-C reaches the bench alone, which then stops it, by `end`). Its children end with it."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process, end)


def stop(process: subprocess.Popen[bytes], end: signal.Signals = signal.SIGTERM, *, patience_seconds: float = 5.0) -> None:
    """`end` first; KILL for what is still there after `patience_seconds`, children included."""
    family = [(pid, birth) for pid in tree(process.pid) if (birth := born(pid))]
    if process.poll() is None:
        process.send_signal(end)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience_seconds)
    for pid, birth in family:
        if born(pid) == birth:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(born(pid) == birth for pid, birth in family), timeout_seconds=5.0)


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{current}/task").iterdir():
                waiting.extend(int(child) for child in (thread / "children").read_text().split())
    return found


def born(pid: int) -> str | None:
    """When a process was born, in the kernel's own count; None when it is gone or only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all that descend from it, of every thread, in user and kernel mode."""
    nanoseconds = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{member}/task").iterdir():
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def pss_megabytes(pid: int) -> float:
    """Memory of a process and all that descend from it; what several share is counted once among them."""
    kilobytes = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return kilobytes / 1024


def wait_until(condition: Callable[[], bool], *, timeout_seconds: float, every_seconds: float = 0.01) -> bool:
    """True as soon as the condition holds; False when it does not within the time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_seconds)
    return True
