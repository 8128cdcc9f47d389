"""Running in the background: pidfiles, detaching from the terminal, other users, and names with `%n` in them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from . import exits

_ATTEMPTS = 10


# -- names ----------------------------------------------------------------------------------------------------------


def node_name(wanted: str | None) -> str:
    """`-n` spelled out: nothing → `celeriac@host`, `w1@%h` → `w1@host`, `w1` → `celeriac@w1` (as Celery reads it)."""
    host = socket.gethostname()
    name, at, place = (wanted or "").rpartition("@")
    short, _, domain = host.partition(".")
    parts = {"%": "%", "h": host, "n": short, "d": domain or host, "i": "0", "I": ""}

    def fill(text: str) -> str:
        return re.sub(r"%(.)", lambda found: parts.get(found[1], found[0]), text)

    return f"{fill(name) if at and name else 'celeriac'}@{fill(place) if place else host}"


def expand(pattern: str | None, node: str) -> str | None:
    """A file's name with the node's in it: `%n` name before the @, `%h` host after it, `%d` its domain, `%p` both; `%i`
    and `%I` number processes in Celery, and since all our processes write to one file, are `0` and nothing."""
    if pattern is None:
        return None
    name, _, host = node.partition("@")
    parts = {"%": "%", "n": name, "h": host, "d": host.partition(".")[2] or host, "p": node, "i": "0", "I": ""}
    return os.path.expanduser(re.sub(r"%(.)", lambda found: parts.get(found[1], found[0]), pattern))


# -- pidfiles -------------------------------------------------------------------------------------------------------


@contextmanager
def pidfile(path: str | None) -> Iterator[None]:
    """Holds `path` with our process id in it, for as long as the block lasts. None: does nothing.

    One of a live process ends the command with exit code 73; one of a dead process, or of one whose number another process
    bears by now, is replaced. Two that start at once cannot both get it: a lock on the file decides.
    """
    if path is None:
        yield
        return
    path = os.path.abspath(path)
    descriptor = _claimed(path)
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:
            _release(path, descriptor)


def _claimed(path: str) -> int:
    for _ in range(_ATTEMPTS):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as problem:
            raise exits.CommandFailed(f"Cannot write the pidfile {path}: {problem.strerror}.", exits.CANNOT_CREATE) from None
        try:
            # A lock of this kind belongs to the process: neither a forked child nor a dead one has it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            pid = _pid_in(descriptor)
            os.close(descriptor)
            if problem.errno not in (errno.EACCES, errno.EAGAIN):
                raise exits.CommandFailed(f"Cannot lock the pidfile {path}: {problem.strerror}.", exits.CANNOT_CREATE) from None
            raise _refused(path, pid) from None
        if not _is_still(path, descriptor):
            os.close(descriptor)
            continue
        pid = _pid_in(descriptor)
        if pid is not None and pid != os.getpid() and _wrote_it(pid, descriptor):
            os.close(descriptor)
            raise _refused(path, pid)
        if pid is not None and pid != os.getpid():
            print(f"Stale pidfile {path} of process {pid}, which is gone; replacing it.", file=sys.stderr)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        os.fsync(descriptor)
        return descriptor
    raise exits.CommandFailed(f"The pidfile {path} is replaced again and again by others.", exits.CANNOT_CREATE)


def _release(path: str, descriptor: int) -> None:
    if _is_still(path, descriptor):
        try:
            os.unlink(path)
        except OSError:
            pass
    os.close(descriptor)


def _is_still(path: str, descriptor: int) -> bool:
    """False when the file that we opened is not the one of that name any more."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _pid_in(descriptor: int) -> int | None:
    text = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() and int(text) > 0 else None


def _wrote_it(pid: int, descriptor: int) -> bool:
    """True when process `pid` lives and is old enough to have written this file."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    started_at = _started_at(pid)
    return started_at is None or started_at <= os.fstat(descriptor).st_mtime + 1.0


def _started_at(pid: int) -> float | None:
    """Seconds since 1970, where /proc tells (Linux)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/stat", "rb") as file:
            boot = next(int(line.split()[1]) for line in file if line.startswith(b"btime"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def _refused(path: str, pid: int | None) -> exits.CommandFailed:
    who = f"process {pid}" if pid else "another process"
    return exits.CommandFailed(
        f"Pidfile ({path}) already exists and {who} runs. Stop it first, or give this worker a pidfile of its own (`--pidfile=/…/%n.pid`).",
        exits.CANNOT_CREATE,
    )


# -- the terminal ---------------------------------------------------------------------------------------------------


class Detached:
    """The way into the background: two forks, a session of its own. The command in the terminal waits until `settled()`, so
    that whatever goes wrong before is still seen there, with the right exit code."""

    def __init__(self) -> None:
        self._pipe: int | None = None

    def leave_terminal(self) -> None:
        """Returns in the process in the background. The one in the terminal ends in here."""
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        first = os.fork()
        if first:
            os.close(writer)
            os.waitpid(first, 0)
            word = _read_all(reader)
            os._exit(int(word) if word else exits.FAILED)
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        self._pipe = writer

    def settled(self, output: str | None = None) -> None:
        """Lets the terminal go: from now on nothing is read, and what is printed goes to the file `output`, or nowhere."""
        if self._pipe is None:
            return
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if output else os.open(os.devnull, os.O_WRONLY)
        source = os.open(os.devnull, os.O_RDONLY)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(source, 0)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.close(source)
        os.close(target)
        self._end(0)

    def failed(self, exit_code: int) -> None:
        """Gives the command in the terminal its exit code."""
        self._end(exit_code)

    def _end(self, exit_code: int) -> None:
        if self._pipe is not None:
            os.write(self._pipe, str(exit_code).encode())
            os.close(self._pipe)
            self._pipe = None


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 64):
        parts.append(part)
    return b"".join(parts)


def check_writable(logfile: str) -> None:
    """Ends the command when this log file cannot be written."""
    try:
        os.close(os.open(logfile, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
    except OSError as problem:
        raise exits.CommandFailed(f"Cannot write the log file {logfile}: {problem.strerror}.", exits.CANNOT_CREATE) from None


# -- users ----------------------------------------------------------------------------------------------------------


def become(uid: str | None, gid: str | None) -> None:
    """Gives up root for a user and a group, by name or number. Without a group, the user's own."""
    if uid is None and gid is None:
        return
    import grp
    import pwd

    try:
        user = None if uid is None else pwd.getpwuid(int(uid)) if uid.isdigit() else pwd.getpwnam(uid)
        group = None if gid is None else grp.getgrgid(int(gid)) if gid.isdigit() else grp.getgrnam(gid)
    except KeyError:
        raise exits.CommandFailed(f"There is no such user or group: --uid={uid or ''} --gid={gid or ''}.", exits.WRONG_CALL) from None
    group_id = group.gr_gid if group is not None else user.pw_gid if user is not None else os.getgid()
    try:
        if os.geteuid() == 0:
            if user is not None:
                os.initgroups(user.pw_name, group_id)
            else:
                os.setgroups([group_id])
        if group_id != os.getgid():
            os.setgid(group_id)
        if user is not None and user.pw_uid != os.getuid():
            os.setuid(user.pw_uid)
    except PermissionError:
        raise exits.CommandFailed("Only root may start a worker as another user or group (--uid, --gid).", exits.FAILED) from None


def set_umask(umask: str | None) -> None:
    """`022`, `0o22`: octal, as in the shell."""
    if umask is None:
        return
    try:
        os.umask(int(umask.lower().removeprefix("0o"), 8))
    except ValueError:
        raise exits.CommandFailed(f"--umask {umask!r} is not an octal number like 022.", exits.WRONG_CALL) from None
