"""`celeriac beat`: every flag of Celery's beat, and what it means here."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import click

from . import daemon, exits
from .command import Command, plain_errors
from .session import Session, plural

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")

_WITHOUT_MEANING = {
    "schedule": "-s: where the schedule stands is kept in the engine; no file is needed.",
    "enable_remote_control": "--enable-remote-control: there is nothing to ask a beat; `celeriac schedule` asks the engine.",
    "executable": "--executable: no other program is started.",
}
"""Flags of Celery's that are accepted, with one line that says why they do nothing."""

EXAMPLES = """
\b
Examples:
  celeriac -A proj beat -l info
  celeriac -A proj worker -B                      a worker that is a beat, too
  celeriac -A proj beat -D --pidfile=/run/beat.pid --logfile=/var/log/beat.log
  celeriac -A proj schedule list                  what is planned

Any number of beats may run, also beside workers with -B: each occurrence is
sent once. TERM or Ctrl-C ends it.
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.option(
    "-l", "--loglevel", type=click.Choice(_LEVELS, case_sensitive=False), default="WARNING", show_default=True, help="What to log."
)
@click.option("-f", "--logfile", metavar="FILE", help="Log there instead of stderr.")
@click.option("--max-interval", type=click.FloatRange(0), metavar="SECONDS", help="Look at the schedule at least so often. Default: 1.")
@click.option("-D", "--detach", is_flag=True, help="Run in the background.")
@click.option("--pidfile", metavar="FILE", help="Write the process id there; refuse to start (exit 73) while that process runs.")
@click.option("--uid", metavar="USER", help="Run as this user (by root).")
@click.option("--gid", metavar="GROUP", help="Run as this group (by root).")
@click.option("--umask", metavar="OCTAL", help="For the files that it makes.")
@click.option("-n", "--hostname", metavar="NAME", hidden=True)
@click.option("-s", "--schedule", hidden=True)
@click.option("-S", "--scheduler", metavar="CLASS", hidden=True)
@click.option("--enable-remote-control", is_flag=True, hidden=True)
@click.option("--executable", hidden=True)
@click.pass_obj
def beat(session: Session, /, **given: Any) -> None:
    """Start a beat: it sends the tasks of the schedule when they are due, until it is told to stop."""
    for name, remark in _WITHOUT_MEANING.items():
        if given[name]:
            session.remark(remark)
    background = daemon.Detached()
    session.enter_workdir()
    if given["detach"]:
        if given["logfile"] is None:
            session.remark("--detach without --logfile: what beat says from now on goes nowhere.")
        background.leave_terminal()
    exit_code = exits.FAILED
    try:
        with plain_errors():
            exit_code = _start(session, given, background)
    except exits.CommandFailed as problem:
        if not given["detach"]:
            raise
        problem.show()
        exit_code = problem.exit_code
    except Exception:
        if not given["detach"]:
            raise
        traceback.print_exc()
    finally:
        background.failed(exit_code)
    sys.exit(exit_code)


def _start(session: Session, given: dict[str, Any], background: daemon.Detached) -> int:
    """What can go wrong goes wrong here, in sight of the terminal; then beat runs until its end."""
    daemon.set_umask(given["umask"])
    node = daemon.node_name(given["hostname"])
    logfile = daemon.expand(given["logfile"], node)
    with daemon.pidfile(daemon.expand(given["pidfile"], node)):
        daemon.become(given["uid"], given["gid"])
        if logfile is not None:
            daemon.check_writable(logfile)
        app = session.app_with_tasks
        scheduler = given["scheduler"] or app.conf.beat_scheduler
        if scheduler and scheduler not in ("celery.beat:PersistentScheduler", "celery.beat.PersistentScheduler"):
            session.remark(
                f"-S {scheduler}: beat keeps its entries in the engine; no other scheduler is used, and entries that one keeps are not sent."
            )
        from ..beat.beat import run_beat
        from ..tasks.entries import own_entries
        from ..worker.logs import name_process, setup_logging

        name_process("Beat")
        own = own_entries(app)
        if given["detach"]:
            app.schedule_store.now()  # An engine that cannot be used is to be heard of in the terminal, not in a log.
        setup_logging(app, given["loglevel"].upper(), logfile)
        if not session.quiet:
            from ..core.settings import mask_url
            from .report import version

            session.say(
                f"celeriac beat v{version()} is starting: {mask_url(app.broker.url)}, {plural(len(own), 'entry', 'entries')} in the settings."
            )
            for remark in app.conf.remarks:
                session.remark(remark)
        background.settled(logfile)
        return run_beat(app, max_interval_seconds=given["max_interval"])
