"""`list`, `queues`, `dead` and `purge`: what lies in the engine, and the few things that people may change there by hand."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..contracts.inspect import Depth, Waiting
from ..tasks.control import known_queues, live_nodes
from ..tasks.why import duration_in_words, moment_in_words
from . import exits
from .command import Command, Group, comma_separated
from .session import UNKNOWN, Session, plural

if TYPE_CHECKING:
    from ..app import Celeriac

_PAGE = 500


# -- list -----------------------------------------------------------------------------------------------------------


@click.command(cls=Command, name="list", epilog="\b\nExamples:\n  celeriac -A proj list\n  celeriac -A proj list queues --json")
@click.argument("what", type=click.Choice(("all", "queues", "tasks", "nodes", "dead", "bindings")), default="all")
@click.pass_obj
def list_command(session: Session, what: str) -> None:
    """Show WHAT: queues with their depth, tasks, nodes, dead letters, or all of it."""
    parts: dict[str, Any] = {}
    if what in ("all", "queues", "bindings"):
        parts["queues"] = _depths(session.app)
    if what in ("all", "nodes"):
        parts["nodes"] = sorted(session.app.broker.nodes(), key=lambda node: node.name)
    if what in ("all", "tasks"):
        parts["tasks"] = _tasks(session)
    if what in ("all", "dead"):
        parts["dead"] = list(_dead_letters(session.app, None, 100 if what == "all" else None))
    if session.json:
        session.say_json(_for_machines(parts) if what == "all" else next(iter(_for_machines(parts).values())))
        return
    for number, name in enumerate(parts):
        if what == "all":
            session.say(("\n" if number else "") + session.style(f"[{name}]", fg="cyan", bold=True))
        _SAY[name](session, parts[name])


def _depths(app: Celeriac) -> dict[str, Depth]:
    names = dict.fromkeys(
        [*known_queues(app.conf), *app.broker.queues(), *(queue for node in live_nodes(app.broker) for queue in node.queues)]
    )
    return dict(sorted(app.broker.depth(list(names)).items()))


def _tasks(session: Session) -> dict[str, list[str]]:
    """Task → the live nodes that know it; with the app's own tasks, when `-A` names an app."""
    tasks: dict[str, list[str]] = {}
    if session.app_name is not None:
        tasks.update((name, []) for name in session.app_with_tasks.tasks)
    for node in live_nodes(session.app.broker):
        for name in node.tasks:
            tasks.setdefault(name, []).append(node.name)
    return {name: tasks[name] for name in sorted(tasks) if not name.startswith("celery.")}


def _for_machines(parts: dict[str, Any]) -> dict[str, Any]:
    made = dict(parts)
    if "dead" in made:
        made["dead"] = [_as_row(waiting) for waiting in made["dead"]]
    return made


def _say_queues(session: Session, depths: dict[str, Depth]) -> None:
    rows = [
        (name, depth.ready, _known(depth.scheduled), _known(depth.leased), depth.dead, _paused(depth)) for name, depth in depths.items()
    ]
    session.table(("queue", "ready", "scheduled", "running", "dead", ""), rows)


def _known(count: int | None) -> int | str:
    return UNKNOWN if count is None else count


def _paused(depth: Depth) -> str:
    return f"paused by {depth.paused_by}" if depth.paused_by is not None else ""


def _say_nodes(session: Session, nodes: Sequence[Any]) -> None:
    if not nodes:
        session.say("No worker is registered.")
        return
    now = session.app.broker.now()
    session.table(
        ("node", "state", "pid", "pool", "slots", "up", "queues"),
        [
            (
                node.name,
                "alive" if node.lease_left_seconds > 0 else f"silent, lease over {duration_in_words(-node.lease_left_seconds)} ago",
                node.pid,
                node.pool,
                node.concurrency,
                duration_in_words(now - node.started_at) if node.started_at else "",
                ", ".join(node.queues),
            )
            for node in nodes
        ],
    )


def _say_tasks(session: Session, tasks: dict[str, list[str]]) -> None:
    for name, nodes in tasks.items():
        session.say(f"{name}  " + session.style(f"({', '.join(nodes) or 'no live worker knows it'})", dim=True))
    if not tasks:
        session.say("No task is known: -A names no app with tasks, and no worker is alive.")


def _say_dead(session: Session, letters: Iterable[Waiting]) -> None:
    rows = [
        (letter.id, letter.message.task if letter.message else "?", letter.queue, _when(letter.died_at), _one_line(letter.reason))
        for letter in letters
    ]
    if not rows:
        session.say("No dead letters.")
        return
    session.table(("id", "task", "queue", "since", "reason"), rows)


_SAY: dict[str, Callable[[Session, Any], None]] = {"queues": _say_queues, "nodes": _say_nodes, "tasks": _say_tasks, "dead": _say_dead}


# -- queues ---------------------------------------------------------------------------------------------------------


@click.group(
    cls=Group,
    invoke_without_command=True,
    epilog="\b\nExamples:\n  celeriac -A proj queues pause mail\n  celeriac -A proj queues resume mail",
)
@click.pass_context
def queues(ctx: click.Context) -> None:
    """Show the queues; pause and resume them."""
    if ctx.invoked_subcommand is None:
        session = ctx.find_object(Session)
        assert session is not None
        depths = _depths(session.app)
        session.say_json(depths) if session.json else _say_queues(session, depths)


@queues.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--by", metavar="WHO", help="Who pauses it; `why` and `list` name them. Default: user@host.")
@click.pass_obj
def pause(session: Session, names: Sequence[str], by: str | None) -> None:
    """Let nothing more be taken from these queues, until `resume`. Tasks may still be sent. Lasts over restarts."""
    session.app.broker.pause(names, by=by or person())
    _say_depths_of(session, names, "is paused")


@queues.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def resume(session: Session, names: Sequence[str]) -> None:
    """Undo `pause`."""
    session.app.broker.resume(names)
    _say_depths_of(session, names, "goes on")


def _say_depths_of(session: Session, names: Sequence[str], what: str) -> None:
    depths = session.app.broker.depth(names)
    if session.json:
        session.say_json(depths)
        return
    for name in names:
        depth = depths.get(name, Depth())
        session.say(f"Queue '{name}' {what} ({plural(depth.waiting, 'task')} waiting).")


def person() -> str:
    """Who acts at this terminal."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


# -- dead letters ---------------------------------------------------------------------------------------------------


@click.group(
    cls=Group,
    epilog="\b\nExamples:\n  celeriac -A proj dead list -Q mail\n  celeriac -A proj dead replay ID\n  celeriac -A proj dead replay --all -Q mail",
)
def dead() -> None:
    """Tasks that were given up, with the reason: look at them, run them again, throw them away."""


@dead.command(name="list")
@click.option("-Q", "--queues", type=comma_separated, metavar="NAMES", help="Only of these queues.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="So many at most, the latest first.")
@click.pass_obj
def dead_list(session: Session, queues: list[str] | None, limit: int) -> None:
    """Show dead letters, the latest of each queue first."""
    letters = list(_dead_letters(session.app, queues, limit))
    if session.json:
        session.say_json([_as_row(letter) for letter in letters])
        return
    _say_dead(session, letters)
    if len(letters) == limit:
        session.remark(f"There may be more than {limit}: see --limit.")


@dead.command(name="replay")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them (of the queues of -Q).")
@click.option("-Q", "--queues", type=comma_separated, metavar="NAMES", help="With --all: only of these queues.")
@click.pass_obj
def dead_replay(session: Session, ids: Sequence[str], everything: bool, queues: list[str] | None) -> None:
    """Put dead letters back into their queues, with a crash count of 0."""
    wanted = _wanted(session, ids, everything, queues)
    done = session.app.broker.replay(wanted) if wanted else []
    _say_done(session, wanted, done, "replayed", "is no dead letter, or waits again already")


@dead.command(name="discard")
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them (of the queues of -Q).")
@click.option("-Q", "--queues", type=comma_separated, metavar="NAMES", help="With --all: only of these queues.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_obj
def dead_discard(session: Session, ids: Sequence[str], everything: bool, queues: list[str] | None, force: bool) -> None:
    """Throw dead letters away. There is no undo."""
    wanted = _wanted(session, ids, everything, queues)
    if everything and wanted and not force:
        click.confirm(f"Throw {plural(len(wanted), 'dead letter')} away? There is no undo.", abort=True, err=True)
    done = session.app.broker.discard(wanted) if wanted else []
    _say_done(session, wanted, done, "discarded", "is no dead letter")


def _wanted(session: Session, ids: Sequence[str], everything: bool, queues: list[str] | None) -> list[str]:
    if bool(ids) == everything:
        raise click.UsageError("Name ids, or say --all.")
    return [letter.id for letter in _dead_letters(session.app, queues, None)] if everything else list(ids)


def _say_done(session: Session, wanted: Sequence[str], done: Sequence[str], verb: str, otherwise: str) -> None:
    missed = [id for id in wanted if id not in set(done)]
    if session.json:
        session.say_json({verb: done, "unknown": missed})
    else:
        for id in missed[:20]:
            session.remark(f"{id} {otherwise}.")
        session.say(f"{verb.capitalize()} {plural(len(done), 'dead letter')}.")
    if missed:
        raise click.exceptions.Exit(exits.FAILED)


def _dead_letters(app: Celeriac, queues: Sequence[str] | None, limit: int | None) -> Iterator[Waiting]:
    count = 0
    for queue in queues or app.broker.queues():
        offset = 0
        while page := app.broker.peek(queue, state="dead", limit=_PAGE, offset=offset):
            for letter in page:
                yield letter
                count += 1
                if count == limit:
                    return
            offset += len(page)


def _as_row(letter: Waiting) -> dict[str, Any]:
    message = letter.message
    return {
        "id": letter.id,
        "task": message.task if message else None,
        "queue": letter.queue,
        "args": message.argsrepr if message else None,
        "kwargs": message.kwargsrepr if message else None,
        "reason": letter.reason,
        "died_at": letter.died_at,
        "crashes": letter.crashes,
        "retries": message.retries if message else None,
    }


def _when(seconds: float | None) -> str:
    return moment_in_words(seconds) if seconds else ""


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:157]}…"


# -- purge ----------------------------------------------------------------------------------------------------------


@click.command(cls=Command, epilog="\b\nExamples:\n  celeriac -A proj purge\n  celeriac -A proj purge -f -Q mail,reports")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("-Q", "--queues", "named", type=comma_separated, metavar="NAMES", help="These queues. Default: those of the app's settings.")
@click.option("-X", "--exclude-queues", type=comma_separated, metavar="NAMES", help="Not these.")
@click.pass_obj
def purge(session: Session, force: bool, named: list[str] | None, exclude_queues: list[str] | None) -> None:
    """Throw away all waiting tasks of the app's queues. There is no undo. Running tasks and dead letters stay."""
    app = session.app
    excluded = set(exclude_queues or ())
    names = sorted(set(named or known_queues(app.conf)) - excluded)
    if not names:
        raise exits.CommandFailed("No queue is left to purge.", exits.WRONG_CALL)
    headline = "queue" if len(names) == 1 else "queues"
    if not force:
        depths = app.broker.depth(names)
        waiting = sum(depth.waiting for depth in depths.values())
        session.remark(
            f"{session.style('WARNING', fg='red')}: This will remove {plural(waiting, 'task')} from {headline}: {', '.join(names)}.\n"
            "         There is no undo for this operation!\n\n(to skip this prompt use the -f option)"
        )
        click.confirm("Are you sure you want to delete all tasks?", abort=True, err=True)
    count = app.broker.purge(names)
    if session.json:
        session.say_json({"purged": count, "queues": names})
    elif count:
        session.say(f"Purged {plural(count, 'message')} from {len(names)} known task {headline}.")
    else:
        session.say(f"No messages purged from {len(names)} {headline}.")
    _remark_on_others(session, app, excluded.union(names))


def _remark_on_others(session: Session, app: Celeriac, handled: set[str]) -> None:
    others = {name: depth for name, depth in app.broker.depth().items() if name not in handled and depth.waiting}
    if others:
        listed = ", ".join(f"'{name}' ({depth.waiting})" for name, depth in sorted(others.items()))
        session.remark(f"Other queues hold tasks too: {listed}. Name them with -Q to purge them.")
