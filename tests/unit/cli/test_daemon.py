"""Names of nodes and files, and pidfiles: live ones refuse, stale ones are replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac.cli import daemon
from celeriac.cli.exits import CommandFailed


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (None, "celeriac@web1.example.com"),
        ("w1@%h", "w1@web1.example.com"),
        ("w1@%n.%d", "w1@web1.example.com"),
        ("w1", "celeriac@w1"),
        ("w1@elsewhere", "w1@elsewhere"),
        ("%n@%h", "web1@web1.example.com"),
        ("100%%@%h", "100%@web1.example.com"),
    ],
)
def test_node_names(monkeypatch: pytest.MonkeyPatch, wanted: str | None, name: str) -> None:
    monkeypatch.setattr(daemon.socket, "gethostname", lambda: "web1.example.com")
    assert daemon.node_name(wanted) == name


def test_file_names() -> None:
    assert daemon.expand("/run/%n.pid", "w1@web1.example.com") == "/run/w1.pid"
    assert daemon.expand("%p-%h-%d-%i%I%%", "w1@web1.example.com") == "w1@web1.example.com-web1.example.com-example.com-0%"
    assert daemon.expand(None, "w1@h") is None


def test_pidfile_is_there_while_it_lasts(tmp_path: Path) -> None:
    file = tmp_path / "w.pid"
    with daemon.pidfile(str(file)):
        assert file.read_text() == f"{os.getpid()}\n"
    assert not file.exists()


def test_live_pidfile_refuses(tmp_path: Path) -> None:
    file = tmp_path / "w.pid"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        file.write_text(f"{other.pid}\n")
        with pytest.raises(CommandFailed, match=str(other.pid)) as refusal, daemon.pidfile(str(file)):
            pass
        assert refusal.value.exit_code == 73
        assert file.read_text() == f"{other.pid}\n"
        other.communicate(b"\n")
    with daemon.pidfile(str(file)):
        assert file.read_text() == f"{os.getpid()}\n"


def test_pidfile_of_a_number_that_another_process_bears_by_now_is_stale(tmp_path: Path) -> None:
    file = tmp_path / "w.pid"
    file.write_text(f"{os.getppid()}\n")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    with daemon.pidfile(str(file)):
        assert file.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("content", ["", "rubbish", "-1\n", "999999999\n"])
def test_broken_pidfile_is_replaced(tmp_path: Path, content: str) -> None:
    file = tmp_path / "w.pid"
    file.write_text(content)
    with daemon.pidfile(str(file)):
        assert file.read_text() == f"{os.getpid()}\n"


def test_two_processes_cannot_both_have_it(tmp_path: Path) -> None:
    """Even when the first one has not written its number yet: the lock decides."""
    file = tmp_path / "w.pid"
    code = (
        "import fcntl, os, sys\n"
        f"fd = os.open({str(file)!r}, os.O_RDWR | os.O_CREAT)\n"
        "fcntl.lockf(fd, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(CommandFailed, match="another process"), daemon.pidfile(str(file)):
            pass
        other.communicate()


def test_pidfile_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="No such file") as refusal, daemon.pidfile(str(tmp_path / "no" / "w.pid")):
        pass
    assert refusal.value.exit_code == 73


def test_a_forked_child_does_not_take_the_pidfile_away(tmp_path: Path) -> None:
    file = tmp_path / "w.pid"
    with daemon.pidfile(str(file)):
        child = os.fork()
        if not child:
            try:
                with daemon.pidfile(None):
                    pass
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert file.exists()


def test_umask_is_octal() -> None:
    before = os.umask(0o022)
    try:
        daemon.set_umask("027")
        assert os.umask(0o022) == 0o027
        with pytest.raises(CommandFailed, match="octal"):
            daemon.set_umask("9")
    finally:
        os.umask(before)


def test_unknown_user() -> None:
    with pytest.raises(CommandFailed, match="no such user"):
        daemon.become("nobody-of-this-name", None)
