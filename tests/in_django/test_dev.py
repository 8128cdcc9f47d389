"""`manage.py celeriac dev`, in a terminal: it reloads, tells of crashes, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.support.django_project import MakeDjangoProject
from tests.support.postgresql import free_port
from tests.support.workers import until as until_ready

SEND = "from books.tasks import version; print(json.dumps(version.delay().get(timeout=40)))"
TASK = """
from celeriac import shared_task


@shared_task
def version():
    return {}
"""


def processes_in(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")) == directory and (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="finds processes in /proc")
def test_web_and_worker_in_one_terminal(make_site: MakeDjangoProject) -> None:
    site = make_site(CELERY_BROKER_URL=None)
    tasks = site.directory / "books" / "tasks.py"
    tasks.write_text(TASK.format(1))
    port = free_port()
    terminal, side = pty.openpty()
    dev = subprocess.Popen(
        [sys.executable, "manage.py", "celeriac", "dev", "--web", f"127.0.0.1:{port}", "-c", "1"],
        cwd=site.directory,
        env=site.environment(),
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(side)
    seen = _read(terminal)
    try:

        def said(words: str, times: int = 1) -> Callable[[], bool]:
            return lambda: len(re.findall(words, seen())) >= times

        def until(condition: Callable[[], bool], what: str) -> None:
            until_ready(condition, what, seconds=100)  # six starts of Python are behind some of them

        until(said(r"worker \|.* ready\."), "the worker is ready")
        until(lambda: _answers(port), "the web server answers")
        assert site.python(SEND) == 1

        tasks.write_text(TASK.format(22))
        until(said(r"books/tasks\.py changed; worker begins again"), "the change is noticed")
        until(said(r"worker \|.* ready\.", 2), "the worker is ready again")
        assert site.python(SEND) == 22

        tasks.write_text("this is no Python")
        until(said(r"dev .*worker ended with exit code [1-9]"), "the crash is told")
        until(said("this is no Python"), "and what is wrong")
        tasks.write_text(TASK.format(333))
        until(said(r"worker \|.* ready\.", 3), "the worker is back")
        until(lambda: _answers(port), "the web server too")
        assert site.python(SEND) == 333

        os.write(terminal, b"\x03")  # Ctrl-C
        assert dev.wait(60) == 0
        until(lambda: not processes_in(site.directory), "nothing is left behind")
    except BaseException:
        print(seen())
        raise
    finally:
        if dev.poll() is None:
            dev.terminate()
            dev.wait(60)
        os.close(terminal)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(terminal: int) -> Callable[[], str]:
    """What has been written to it so far, without colours."""
    found = bytearray()

    def read() -> None:
        try:
            while data := os.read(terminal, 65536):
                found.extend(data)
        except OSError:
            pass  # all have closed it

    threading.Thread(target=read, daemon=True).start()
    return lambda: re.sub(r"\x1b\[[0-9;]*m", "", found.decode(errors="replace"))


def _answers(port: int) -> bool:
    try:
        urlopen(f"http://127.0.0.1:{port}/", timeout=10).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True


def test_doctor_looks_at_what_is_djangos(make_site: MakeDjangoProject) -> None:
    site = make_site(CELERY_BROKER_URL=None)
    site.python(
        "from datetime import timedelta; from django.utils import timezone; from celeriac.django.models import OutboxParcel\n"
        "OutboxParcel.objects.create(content='{\"messages\": []}'); OutboxParcel.objects.update(created_at=timezone.now() - timedelta(hours=2))"
    )
    found = site.run("celeriac", "doctor", fails=True)
    assert "1 parcel(s) of committed messages wait in the outbox, the oldest for 2 h" in found
    site.worker("-c", "1")
    left = "from celeriac.django.models import OutboxParcel; print(OutboxParcel.objects.count())"
    until_ready(lambda: site.python(left) == 0, "the worker's relay has found it")
    found = site.run("celeriac", "doctor")
    assert "All migrations are applied." in found and "messages are part of the transaction" in found
    site.run("migrate", "celeriac", "zero", "-v", "0")
    assert "Celeriac's tables are not up to date" in site.run("celeriac", "doctor", fails=True)
