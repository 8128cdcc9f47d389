"""`celeriac doctor`: looks at an installation from end to end, and says in sentences what is wrong and what to do."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from ..contracts.inspect import Depth
from ..contracts.mailbox import Letter, Node
from ..core import states
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import CeleriacError, EngineUnavailable, ImproperlyConfigured
from ..core.ids import new_id
from ..core.message import Record
from ..core.settings import mask_url
from ..tasks.control import known_queues
from ..tasks.why import duration_in_words
from . import exits
from .command import Command
from .session import Session, plural

if TYPE_CHECKING:
    from ..app import Celeriac

_CLOCK_TOLERANCE_SECONDS = 2.0
_LOOK_AT = 2000
"""So many waiting messages of each queue are looked at."""


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: str
    """settings, engine, results, clock, workers, leases, queues, tasks, dead."""
    level: str
    """fine, note (nothing to worry about), wrong."""
    sentence: str
    advice: str = ""
    """What to do."""


def _fine(check: str, sentence: str) -> Finding:
    return Finding(check=check, level="fine", sentence=sentence)


def _note(check: str, sentence: str, advice: str = "") -> Finding:
    return Finding(check=check, level="note", sentence=sentence, advice=advice)


def _wrong(check: str, sentence: str, advice: str) -> Finding:
    return Finding(check=check, level="wrong", sentence=sentence, advice=advice)


further_checks: list[Callable[[Celeriac], Iterable[Finding]]] = []
"""Of what the app is part of: `manage.py celeriac` adds Django's."""


@click.command(
    cls=Command,
    epilog="\b\nExamples:\n  celeriac -A proj doctor\n  celeriac -A proj doctor --json\n\n\b\nExit codes: 0 all is well; 1 something is wrong.",
)
@click.pass_obj
def doctor(session: Session) -> None:
    """Check settings, engine, workers, queues and clocks; say what is wrong, and what to do."""
    app = session.app
    findings = []
    checks = examine(app, name=session.app_name or "…", tasks=(lambda: session.app_with_tasks.tasks) if session.app_name else None)
    for finding in chain(checks, *(further(app) for further in further_checks)):
        findings.append(finding)
        if not session.json:
            _say(session, finding)
    wrong = sum(finding.level == "wrong" for finding in findings)
    if session.json:
        session.say_json({"ok": not wrong, "findings": findings})
    elif not session.quiet:
        session.say(f"\n{plural(wrong, 'thing')} to put right." if wrong else "\nAll is well.")
    if wrong:
        raise click.exceptions.Exit(exits.FAILED)


def _say(session: Session, finding: Finding) -> None:
    if session.quiet and finding.level == "fine":
        return
    mark = {"fine": session.style("ok   ", fg="green"), "note": session.style("note ", fg="yellow")}.get(
        finding.level, session.style("WRONG", fg="red", bold=True)
    )
    session.say(f"{mark}  {finding.check + ':':10} {finding.sentence}")
    if finding.advice:
        session.say(f"{'':18} → {finding.advice}")


# -- the checks, in an order in which each makes sense only when those before it went well --------------------------


def examine(
    app: Celeriac, *, name: str = "…", tasks: Callable[[], Iterable[str]] | None = None, clock: Clock = SYSTEM_CLOCK
) -> Iterator[Finding]:
    """All findings. `name` is how commands in advice name the app; `tasks` tells which tasks the app's own code has."""
    try:
        yield from _settings(app)
    except ImproperlyConfigured as problem:
        yield _wrong("settings", str(problem), "Correct the settings; nothing else can be checked before.")
        return
    try:
        yield from _engine(app)
        yield from _results(app)
        yield from _clock(app, clock)
        nodes = app.broker.nodes()
        live = [node for node in nodes if node.lease_left_seconds > 0]
        yield from _workers(nodes, live, name)
        yield from _leases(nodes, live)
        yield from _queues(app, live, name)
        yield from _waiting_tasks(app, live)
        if tasks is not None:
            yield from _own_tasks(tasks(), live)
        yield from _dead(app, name)
    except CeleriacError as problem:
        # The other errors say themselves what to do.
        advice = _engine_advice(_url(app)) if type(problem) is EngineUnavailable else ""
        yield _wrong("engine", f"{mask_url(_url(app))} cannot be used: {problem}", advice)


def _settings(app: Celeriac) -> Iterator[Finding]:
    remarks = list(app.conf.remarks)
    yield _fine("settings", "They are valid.")
    for remark in remarks:
        yield _note("settings", remark)


def _engine(app: Celeriac) -> Iterator[Finding]:
    """Reads, then writes a letter that nobody else gets."""
    broker = app.broker
    began = time.monotonic()
    broker.now()
    address = f"doctor.{new_id()}"
    broker.post([address], Letter(method="doctor"))
    if not broker.collect(address, 1.0):
        yield _wrong("engine", f"{mask_url(broker.url)} took a letter and did not give it back.", "Is something else using its data?")
        return
    took = time.monotonic() - began
    yield _fine("engine", f"{mask_url(broker.url)} can be read and written ({duration_in_words(took)}).")
    if not broker.capabilities.processes:
        yield _wrong(
            "engine", "This engine lives inside one process: workers elsewhere see none of its tasks.", "Use `sqlite:///celeriac.db`."
        )
    if not broker.capabilities.durable:
        yield _note("engine", "What waits here is lost when its process ends.", "For more than tests, use another engine.")


def _results(app: Celeriac) -> Iterator[Finding]:
    backend = app.backend
    if str(backend.url).partition("://")[0] in ("disabled", ""):
        yield _note("results", "Results are not kept (`result_backend` is disabled).")
        return
    probe = Record(task_id=f"doctor.{new_id()}", status=states.SUCCESS)
    backend.store([probe])
    kept = backend.fetch([probe.task_id])
    backend.forget([probe.task_id])
    where = "together with the messages" if app.results_with_broker else f"in {mask_url(backend.url)}"
    if probe.task_id in kept:
        yield _fine("results", f"They are kept {where}.")
    else:
        yield _wrong(
            "results", f"A result stored in {mask_url(backend.url)} was not there afterwards.", "Check that nothing evicts its data."
        )


def _clock(app: Celeriac, clock: Clock) -> Iterator[Finding]:
    before = clock.time()
    engine = app.broker.now()
    after = clock.time()
    difference = engine - (before + after) / 2
    if abs(difference) > _CLOCK_TOLERANCE_SECONDS + (after - before):
        direction = "ahead of" if difference > 0 else "behind"
        yield _wrong(
            "clock",
            f"The engine's clock is {duration_in_words(abs(difference))} {direction} this machine's; tasks with an eta start that much "
            f"{'early' if difference > 0 else 'late'}.",
            "Let both keep time by NTP. (countdown is not affected.)",
        )
    else:
        yield _fine("clock", f"This machine and the engine agree to within {duration_in_words(max(abs(difference), 0.001))}.")


def _workers(nodes: list[Node], live: list[Node], name: str) -> Iterator[Finding]:
    if not live:
        yield _wrong("workers", "No worker is alive: nothing is run.", f"Start one: `celeriac -A {name} worker`.")
        return
    slots = sum(node.concurrency for node in live)
    yield _fine(
        "workers", f"{plural(len(live), 'worker')} alive, running up to {slots} at once: {', '.join(sorted(node.name for node in live))}."
    )
    names = [node.name for node in live]
    for double in sorted({found for found in names if names.count(found) > 1}):
        yield _wrong("workers", f"{names.count(double)} workers are named {double}.", "Give each its own name: `-n w1@%h`, `-n w2@%h`.")
    versions = sorted({node.version for node in live})
    if len(versions) > 1:
        yield _note("workers", f"They are of different versions: {', '.join(versions)}.")


def _leases(nodes: list[Node], live: list[Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.lease_left_seconds <= 0:
            yield _wrong(
                "leases",
                f"{node.name} (process {node.pid} on {node.host or 'an unknown host'}) has been silent: its lease ended "
                f"{duration_in_words(-node.lease_left_seconds)} ago.",
                "A live worker takes over what it held within seconds." if live else "Start a worker: it takes over what this one held.",
            )
        elif node.pid and node.host == socket.gethostname() and not _lives(node.pid):
            yield _wrong(
                "leases",
                f"{node.name} is registered, but its process {node.pid} is gone.",
                f"What it held is taken over by a live worker at the latest when its lease ends, in {duration_in_words(node.lease_left_seconds)}.",
            )


def _queues(app: Celeriac, live: list[Node], name: str) -> Iterator[Finding]:
    depths = app.broker.depth()
    consumed = {queue for node in live for queue in node.queues}
    waiting = 0
    for queue, depth in sorted(depths.items()):
        count = depth.waiting
        waiting += count
        if depth.paused_by is not None:
            yield _note(
                "queues",
                f"'{queue}' is paused by {depth.paused_by}, with {_tasks(count)} waiting.",
                f"`celeriac -A {name} queues resume {queue}`",
            )
        if count and queue not in consumed:
            yield _wrong(
                "queues",
                f"Nobody consumes '{queue}', where {_tasks(count)} {'waits' if count == 1 else 'wait'}.",
                f"Start a worker for it: `celeriac -A {name} worker -Q {queue}`; or, if the name is wrong, look at `task_routes`.",
            )
    if live:
        for queue in known_queues(app.conf):
            if queue not in consumed and not _count(depths.get(queue)):
                yield _note("queues", f"The settings name queue '{queue}', which no live worker consumes.")
    where = f"{_tasks(waiting)} {'waits' if waiting == 1 else 'wait'} in {plural(len(depths), 'queue')}." if waiting else "Nothing waits."
    yield _fine("queues", where)


def _waiting_tasks(app: Celeriac, live: list[Node]) -> Iterator[Finding]:
    """Compares what waits with what the workers of its queue know."""
    unknown: dict[tuple[str, str], int] = {}
    undecodable: dict[str, int] = {}
    for queue in app.broker.queues():
        consumers = [node for node in live if queue in node.queues]
        if not consumers:
            continue
        known = {task for node in consumers for task in node.tasks}
        for state in ("ready", "scheduled"):
            for waiting in app.broker.peek(queue, state=state, limit=_LOOK_AT):
                if waiting.message is None:
                    undecodable[queue] = undecodable.get(queue, 0) + 1
                elif waiting.message.task not in known:
                    key = (queue, waiting.message.task)
                    unknown[key] = unknown.get(key, 0) + 1
    for (queue, task), count in sorted(unknown.items()):
        elsewhere = sorted(node.name for node in live if task in node.tasks)
        advice = (
            f"{elsewhere[0]} knows it, but does not consume '{queue}': let it (`control add_consumer {queue}`), or route the task elsewhere."
            if elsewhere
            else "Deploy the code that has it to the workers and restart them, or check the task's name; until then it waits."
        )
        yield _wrong(
            "tasks", f"No live worker of '{queue}' knows '{task}', of which {_tasks(count)} {'waits' if count == 1 else 'wait'}.", advice
        )
    for queue, count in sorted(undecodable.items()):
        yield _note(
            "tasks",
            f"{plural(count, 'message')} in '{queue}' cannot be decoded.",
            "A worker will put them into the dead letters with the reason.",
        )


def _own_tasks(tasks: Iterable[str], live: list[Node]) -> Iterator[Finding]:
    known = {task for node in live for task in node.tasks}
    own = sorted(task for task in tasks if not task.startswith(("celery.", "celeriac.")))
    missing = [task for task in own if task not in known]
    if live and missing:
        shown = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
        yield _note("tasks", f"Your code has tasks that no live worker knows: {shown}.", "Restart the workers when they should.")
    elif live:
        yield _fine("tasks", f"The workers know all {plural(len(own), 'task')} of your code.")


def _dead(app: Celeriac, name: str) -> Iterator[Finding]:
    dead = {queue: depth.dead for queue, depth in app.broker.depth().items() if depth.dead}
    if not dead:
        yield _fine("dead", "There are no dead letters.")
        return
    for queue, count in sorted(dead.items()):
        latest = app.broker.peek(queue, state="dead", limit=1)
        reason = f" The latest: {' '.join(latest[0].reason.split())[:200]}" if latest and latest[0].reason else ""
        yield _wrong(
            "dead",
            f"{plural(count, 'dead letter')} in '{queue}'.{reason}",
            f"`celeriac -A {name} dead list`, then `dead replay ID` or `dead discard ID`.",
        )


# -- small things ---------------------------------------------------------------------------------------------------


def _url(app: Celeriac) -> str:
    return str(app.conf.broker_url)


def _engine_advice(url: str) -> str:
    if url.startswith("sqlite"):
        return "Check that the file's folder exists, that this user may write there, and that the disk is not full."
    return "Check that the server runs, and that `broker_url` names its host, port and password."


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _tasks(count: int) -> str:
    return plural(count, "task")


def _count(depth: Depth | None) -> int:
    return depth.waiting if depth is not None else 0
