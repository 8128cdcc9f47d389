"""`celeriac worker`: every flag of Celery's worker, and what it means here."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from ..core import events
from ..worker.options import WorkerOptions
from . import daemon, exits
from .command import Command, ParamType, comma_separated, plain_errors
from .session import Session

if TYPE_CHECKING:
    from ..app import Celeriac
    from ..worker.companion import Companion

_POOLS = ("prefork", "threads", "solo", "gevent", "eventlet", "asyncio", "processes", "thread")
_POOL_NAMES = {"processes": "prefork", "thread": "threads"}
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")

_WITHOUT_MEANING = {
    "optimization": "-O: there is one way to hand out tasks here, and it is fair.",
    "prefetch_multiplier": "--prefetch-multiplier: batches adapt by themselves; nothing is prefetched behind a long task.",
    "disable_prefetch": "--disable-prefetch: nothing is prefetched behind a long task anyway.",
    "task_events": "-E: there are no task events here; states and results are read from the engine.",
    "statedb": "--statedb: revocations are kept in the engine; no file is needed.",
    "without_gossip": "--without-gossip: workers do not gossip; the engine knows who is there.",
    "without_mingle": "--without-mingle: workers do not mingle; the engine keeps revocations for all.",
    "without_heartbeat": "--without-heartbeat: the heartbeat renews the leases of tasks and stays on.",
    "heartbeat_interval": "--heartbeat-interval: set by the lease of the engine, not by this flag.",
    "executable": "--executable: the worker forks itself; no other program is started.",
    "schedule_filename": "-s: where the schedule stands is kept in the engine; no file is needed.",
    "scheduler": "--scheduler: beat keeps its entries in the engine; no other scheduler is used.",
}
"""Flags of Celery's that are accepted, with one line that says why they do nothing."""


class Autoscale(ParamType):
    """`10,3` → (10, 3); `10` → (10, 0) in Celery, (10, 1) here."""

    name = "max,min"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        most, _, fewest = str(value).partition(",")
        try:
            found = int(most), int(fewest or 1)
        except ValueError:
            self.fail(f"{value!r} is not two numbers like 10,3", param, ctx)
        if min(found) < 0 or found[0] < 1:
            self.fail(f"{value!r}: the most must be at least 1", param, ctx)
        return max(found), max(1, min(found))


class Concurrency(ParamType):
    """A number; `auto` and 0 are as many as there are processors."""

    name = "n|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if str(value) in ("auto", "0"):
            return None
        if not str(value).isdigit():
            self.fail(f"{value!r} is neither a number nor 'auto'", param, ctx)
        return int(value)


class Memory(click.IntRange):
    """KiB."""

    name = "kib"


EXAMPLES = """
\b
Examples:
  celeriac -A proj worker -l info
  celeriac -A proj worker -c 8 -Q mail,default -n mail@%h
  celeriac -A proj worker -P threads -c 50            many tasks that wait for the network
  celeriac -A proj worker --reload                    restarts when your code changes
  celeriac -A proj worker -D --pidfile=/run/%n.pid --logfile=/var/log/%n.log

TERM or Ctrl-C once: take nothing new and finish what runs (for up to
worker_soft_shutdown_timeout); twice: give back what runs, now; QUIT: at once.
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.option("-n", "--hostname", metavar="NAME", help="The node's name: `mail@%h`. %h is the host, %n its first part, %d its domain.")
@click.option(
    "-l", "--loglevel", type=click.Choice(_LEVELS, case_sensitive=False), default="WARNING", show_default=True, help="What to log."
)
@click.option("-f", "--logfile", metavar="FILE", help="Log there instead of stderr. %n, %h, %p: the node's name, host, both.")
@click.option("-Q", "--queues", type=comma_separated, metavar="NAMES", help="Consume only these queues: `mail,default`.")
@click.option("-X", "--exclude-queues", type=comma_separated, metavar="NAMES", help="Consume all but these.")
@click.option("-c", "--concurrency", type=Concurrency(), help="How many tasks at once. Default: one for each processor.")
@click.option("-P", "--pool", type=click.Choice((*_POOLS, "custom"), case_sensitive=False), help="What runs them. Default: prefork.")
@click.option("--processes", type=click.IntRange(1), help="For threads, gevent, eventlet, asyncio: how many processes of `-c` each.")
@click.option("--autoscale", type=Autoscale(), metavar="MAX,MIN", help="Between so many processes, as the queues need: `10,3`.")
@click.option("-I", "--include", type=comma_separated, default="", metavar="MODULES", help="Import these modules too.")
@click.option("--time-limit", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Kill a task that runs longer.")
@click.option("--soft-time-limit", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Raise SoftTimeLimitExceeded in it.")
@click.option("--max-tasks-per-child", type=click.IntRange(1), metavar="N", help="A new process after so many tasks.")
@click.option("--max-memory-per-child", type=Memory(1), metavar="KIB", help="A new process when one holds more memory than this.")
@click.option("--pool-start-method", "start_method", type=click.Choice(("fork", "spawn")), help="How processes start. Default: fork.")
@click.option("--soft-shutdown-timeout", type=click.FloatRange(0), metavar="SECONDS", help="How long TERM waits for what runs.")
@click.option("-E", "--task-events", "--events", is_flag=True, help="Tell of each task's life, for monitors.")
@click.option("--purge", "--discard", is_flag=True, help="Throw away all waiting tasks of these queues first. There is no undo.")
@click.option("--reload", is_flag=True, help="For development: restart when a source file changes.")
@click.option("-B", "--beat", is_flag=True, help="Send what is scheduled, too. Any number of workers may.")
@click.option("-s", "--schedule-filename", "--schedule", hidden=True)
@click.option("--scheduler", hidden=True)
@click.option("-D", "--detach", is_flag=True, help="Run in the background.")
@click.option("--pidfile", metavar="FILE", help="Write the process id there; refuse to start (exit 73) while that process runs.")
@click.option("--uid", metavar="USER", help="Run as this user (by root).")
@click.option("--gid", metavar="GROUP", help="Run as this group (by root).")
@click.option("--umask", metavar="OCTAL", help="For the files that tasks make.")
@click.option("--executable", hidden=True)
@click.option("-S", "--statedb", hidden=True)
@click.option("-O", "--optimization", hidden=True)
@click.option("--prefetch-multiplier", hidden=True)
@click.option("--disable-prefetch", is_flag=True, hidden=True)
@click.option("--without-gossip", is_flag=True, hidden=True)
@click.option("--without-mingle", is_flag=True, hidden=True)
@click.option("--without-heartbeat", is_flag=True, hidden=True)
@click.option("--heartbeat-interval", hidden=True)
@click.pass_obj
def worker(session: Session, /, **given: Any) -> None:
    """Start a worker: it takes tasks from the queues and runs them until it is told to stop."""
    if given["pool"] == "custom":
        raise exits.CommandFailed(f"-P custom: pools cannot be added here; there are {', '.join(_POOLS[:6])}.", exits.USAGE)
    for name, remark in _WITHOUT_MEANING.items():
        if given[name]:
            session.remark(remark)
    if given["reload"]:
        if given["detach"]:
            raise exits.CommandFailed("--reload is for development, in a terminal; it does not go with --detach.", exits.USAGE)
        from ..worker.reload import run_reloading

        # The worker is a process below this one, started by the same command line: the pidfile and the banner are its, and code
        # that cannot be imported just now does not end the waiting for a better one.
        session.enter_workdir()
        sys.exit(run_reloading())
    node = daemon.node_name(given["hostname"])
    background = daemon.Detached()
    session.enter_workdir()
    if given["detach"]:
        if given["logfile"] is None:
            session.remark("--detach without --logfile: what the worker says from now on goes nowhere.")
        background.leave_terminal()
    exit_code = exits.FAILED
    try:
        with plain_errors():
            exit_code = _start(session, given, node, background)
    except exits.CommandFailed as problem:
        if not given["detach"]:
            raise
        # Shown before the terminal is let go.
        problem.show()
        exit_code = problem.exit_code
    except Exception:
        if not given["detach"]:
            raise
        traceback.print_exc()
    finally:
        background.failed(exit_code)
    sys.exit(exit_code)


def _start(session: Session, given: dict[str, Any], node: str, background: daemon.Detached) -> int:
    """Everything that can go wrong goes wrong here, in sight of the terminal; then the worker runs until its end."""
    daemon.set_umask(given["umask"])
    logfile = daemon.expand(given["logfile"], node)
    with daemon.pidfile(daemon.expand(given["pidfile"], node)):
        daemon.become(given["uid"], given["gid"])
        if logfile is not None:
            daemon.check_writable(logfile)
        app = session.app_including(given["include"] or [])
        # Receivers may change settings for this one worker, so this comes before anything is read from them.
        events.celeryd_init.send(sender=node, instance=None, conf=app.conf, options=given)
        options = _options(session, app, given, node, logfile)
        if not session.quiet:
            _print_banner(session, app, options)
        if given["detach"]:
            app.broker.nodes()  # An engine that cannot be used is to be heard of in the terminal, not in a log.
        background.settled(logfile)
        from ..worker.supervisor import run_worker

        return run_worker(app, options, _companions(app) if options.beat else ())


def _companions(app: Celeriac) -> list[Companion]:
    from ..beat.beat import run_beat
    from ..worker.companion import Companion

    app.schedule_store  # noqa: B018  # an engine that keeps no schedules is to be heard of now
    return [Companion("beat", lambda: run_beat(app, embedded=True))]


def _options(session: Session, app: Celeriac, given: dict[str, Any], node: str, logfile: str | None) -> WorkerOptions:
    pool = (given["pool"] or app.conf.worker_pool or "prefork").lower()
    return WorkerOptions(
        app_path=session.app_name,
        hostname=node,
        queues=given["queues"] or None,
        exclude_queues=given["exclude_queues"] or [],
        pool=_POOL_NAMES.get(pool, pool),
        concurrency=given["concurrency"],
        processes=given["processes"],
        max_tasks_per_child=given["max_tasks_per_child"],
        max_memory_per_child=given["max_memory_per_child"],
        autoscale=given["autoscale"],
        time_limit=given["time_limit"],
        soft_time_limit=given["soft_time_limit"],
        start_method=given["start_method"] or app.conf.worker_pool_start_method,
        loglevel=given["loglevel"].upper(),
        logfile=logfile,
        purge=given["purge"],
        task_events=given["task_events"],
        beat=given["beat"],
        include=given["include"] or [],
        soft_shutdown_timeout=given["soft_shutdown_timeout"],
    )


def _print_banner(session: Session, app: Celeriac, options: WorkerOptions) -> None:
    from .banner import banner
    from .report import version

    text = banner(session, app, options, version())
    try:
        session.say(text)
        for remark in app.conf.remarks:
            session.remark(remark)
    except OSError:
        pass  # A full disk or a closed terminal is no reason not to work.
