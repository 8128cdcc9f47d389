"""A process of a worker, from both sides: how a supervisor starts it, and what it does first."""

from __future__ import annotations

import ctypes
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from msgspec import Struct

from ..core import events
from ..core.message import Holder
from .executor import Executor
from .limits import install_soft_limit
from .logs import name_process, redirect_prints, stop_redirecting
from .plan import Plan
from .pools.patching import start_line
from .rates import RateLimits
from .slots import Page
from .worker import EXIT_OK, Settler, Worker

if TYPE_CHECKING:
    from ..app import Celeriac

logger = logging.getLogger("celeriac.worker")

GREENLET_POOLS = frozenset({"gevent", "eventlet"})
_PR_SET_PDEATHSIG = 1


class Doom(Struct, frozen=True):
    """Why a supervisor ends a process: for the sake of one task that it runs."""

    task_id: str
    signum: int
    error: dict[str, Any]
    """The exception, as data, with which the task ends."""


class Process:
    """A child as its supervisor sees it."""

    def __init__(self, plan: Plan, app: Celeriac, siblings: Sequence[Process] = ()) -> None:
        """Starts it. Raises OSError: the system has no room for it."""
        self.plan = plan
        self.number = plan.process
        self.page = Page.create(plan.places)
        self.started_at = time.monotonic()
        self.audited_at = self.started_at
        self.soft_signalled: float | None = None
        """When the task began that has been told of its soft limit."""
        self.next_soft_signal = 0.0
        self.freed: float | None = None
        """When the task began whose hostages have been freed."""
        self.doom: Doom | None = None
        """Why the supervisor has killed it."""
        self.interrupted = False
        """Killed because the worker stops: its running task is given back, and nothing is counted."""
        self.draining = False
        self.pid = 0
        self.exit_code: int | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._siblings = siblings
        control, self._control = os.pipe()
        os.set_blocking(self._control, False)
        try:
            self.pid = self._spawn(control) if plan.start_method == "spawn" else self._fork(app, control)
        except OSError:
            self.close()
            raise
        finally:
            os.close(control)
            self._siblings = ()

    def _fork(self, app: Celeriac, control: int) -> int:
        events.worker_before_create_process.send(sender=self)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        try:
            for process in (self, *self._siblings):
                process.forget()
        except OSError:
            os._exit(70)
        serve_and_exit(app, self.plan, self.page, control)

    def _spawn(self, control: int) -> int:
        plan = msgspec.json.encode(self.plan).decode()
        command = [sys.executable, "-c", start_line(self.plan.pool), plan, str(self.page.fd), str(control)]
        self._popen = subprocess.Popen(
            command, pass_fds=(self.page.fd, control, self.plan.rates_fd), env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        return self._popen.pid

    def ended(self) -> bool:
        """True once it is gone; then `exit_code` is negative for a signal, as in `subprocess`."""
        if self.exit_code is not None:
            return True
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if pid == 0:
            return False
        self.exit_code = os.waitstatus_to_exitcode(status)
        if self._popen is not None:
            self._popen.returncode = self.exit_code
        return True

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Sends a signal; a process that is gone already does not mind."""
        if self.exit_code is None:
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:
                pass

    def end_task(self, task_id: str, error: str, *arguments: Any, signum: int = signal.SIGKILL) -> None:
        """Kills it for the sake of the task that it runs, which is to end with this error."""
        self.doom = Doom(task_id, signum, {"exc_type": error, "exc_message": list(arguments), "exc_module": "celery.exceptions"})
        self.kill(signum)

    def tell(self, command: dict[str, Any]) -> None:
        """Sends a command to a process that runs several tasks at once (a prefork process does not listen)."""
        try:
            os.write(self._control, msgspec.json.encode(command) + b"\n")
        except BrokenPipeError:
            pass
        except BlockingIOError:
            logger.error("Process %d (pid %d) does not take commands; %r is lost.", self.number, self.pid, command)

    def drain(self) -> None:
        """It finishes what runs, gives back the rest, and ends."""
        self.draining = True
        self.page.stop()

    def close(self) -> None:
        """After its end: gives the page back."""
        self.page.close()
        os.close(self._control)

    def forget(self) -> None:
        """In a process that was forked off: lets go of what belongs to the supervisor and to siblings."""
        os.close(self._control)
        if self.pid:
            self.page.close()

    def rss_bytes(self) -> int:
        """Resident memory; 0 where the system does not tell."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0


def serve_and_exit(app: Celeriac, plan: Plan, page: Page, control: int) -> NoReturn:
    """The life and the end of a child process. It waits for no thread: what they still run is not its own any more."""
    code = 70
    try:
        code = serve(app, plan, page, control)
    except BaseException:
        logger.exception("Process %d could not work", plan.process)
    finally:
        stop_redirecting()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(app: Celeriac, plan: Plan, page: Page, control: int) -> int:
    """The life of a child process. Returns its exit code."""
    die_with(plan.supervisor_pid)
    _be_a_child()
    name_process(f"ForkPoolWorker-{plan.process}")
    random.seed()
    if app.conf.worker_redirect_stdouts:
        redirect_prints(app.conf.worker_redirect_stdouts_level)
    for name, rate in plan.rate_limits.items():
        if name in app.tasks:
            app.tasks[name].rate_limit = rate
    broker, backend = app.broker, app.backend
    executor = Executor(
        tasks=app.tasks,
        broker=broker,
        backend=backend,
        producer=app.producer,
        settings=app.settings,
        hostname=plan.hostname,
        gate=None if app.conf.worker_disable_rate_limits else RateLimits(plan.rates_fd, app.tasks).pause_seconds,
        lease_until=page.lease_until,
        acknowledged=page.acknowledged,
    )
    settler = Settler(broker, backend, together=app.results_with_broker, lease_until=page.lease_until)
    holder = Holder(plan.node, plan.process)
    events.worker_process_init.send(sender=plan.hostname, hostname=plan.hostname)
    code = EXIT_OK
    try:
        if plan.pool in ("prefork", "solo"):
            worker = Worker(
                settler=settler,
                executor=executor,
                page=page,
                holder=holder,
                queues=plan.queues,
                supervisor_pid=plan.supervisor_pid,
                time_limits=(plan.time_limit, plan.soft_time_limit),
                task_limits=plan.task_limits,
                max_tasks=plan.max_tasks,
                audit_seconds=plan.audit_seconds,
            )
            install_soft_limit(page, executor.running)
            code = worker.run()
        else:
            from .pools import open_pool

            code = open_pool(plan, settler, executor, page, holder, control).run()
    finally:
        events.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=code)
        app.close()
    return code


def _be_a_child() -> None:
    """Signals to the whole group (Ctrl-C, systemd) are the supervisor's to act on, but not in processes that a task makes."""
    for signum in _SUPERVISORS_SIGNALS:
        signal.signal(signum, _leave_it_to_the_supervisor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_through, after_in_child=_be_nobodys_child)


_SUPERVISORS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_forking = threading.local()


def _leave_it_to_the_supervisor(signum: int, frame: object) -> None:
    # a handler, not SIG_IGN: programs that a task starts would inherit SIG_IGN
    return None


def _hold_signals() -> None:
    # Python forgets what arrives between a fork and its child's first line; what is blocked waits in the kernel
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SUPERVISORS_SIGNALS)


def _let_signals_through() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _be_nobodys_child() -> None:
    """A process that a task makes is its own business: whoever made it must be able to end it, from its first moment."""
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _let_signals_through()


def die_with(supervisor_pid: int) -> None:
    """Asks the kernel (Linux) to kill this process with its supervisor; elsewhere the loop looks before each task."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        pass
    if os.getppid() != supervisor_pid:
        os._exit(1)
