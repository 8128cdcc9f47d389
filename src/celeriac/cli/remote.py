"""`status`, `inspect` and `control`: questions and commands to the workers, and their answers in Celery's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from ..tasks.control import live_nodes
from . import exits
from .command import Command, comma_separated
from .session import Session, plural


class Remote(NamedTuple):
    """A command that workers know: its arguments in order, each with what makes a string into it."""

    about: str
    arguments: tuple[tuple[str, Callable[[str], Any]], ...] = ()
    rest: str | None = None
    """The name under which all further arguments travel, as a list."""
    usage: str = ""
    required: int = 0


def _truth(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


INSPECT = {
    "active": Remote("Tasks that run now."),
    "active_queues": Remote("The queues each worker consumes."),
    "clock": Remote("The logical clock."),
    "conf": Remote("The settings of each worker, secrets masked.", (("with_defaults", _truth),), usage="[include_defaults=False]"),
    "memdump": Remote("Earlier memory samples.", (("samples", int),), usage="[n_samples=10]"),
    "memsample": Remote("Resident memory now."),
    "objgraph": Remote(
        "A graph of objects that are not collected.", (("type", str), ("num", int), ("max_depth", int)), usage="[type [num [max_depth]]]"
    ),
    "ping": Remote("Who is there."),
    "query_task": Remote("Which worker has these tasks.", rest="ids", usage="ID…", required=1),
    "registered": Remote("The tasks each worker knows, with these attributes of theirs.", rest="taskinfoitems", usage="[attribute…]"),
    "report": Remote("For bug reports."),
    "reserved": Remote("Tasks that a worker has taken and not started."),
    "revoked": Remote("Ids that are remembered as revoked."),
    "scheduled": Remote("Tasks that wait for their time."),
    "stats": Remote("Counts, pools, resources."),
}

CONTROL = {
    "add_consumer": Remote(
        "Consume from one more queue.",
        (("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)),
        usage="QUEUE [exchange [type [routing_key]]]",
        required=1,
    ),
    "autoscale": Remote("Bounds for a worker with --autoscale.", (("max", int), ("min", int)), usage="MAX MIN", required=1),
    "cancel_consumer": Remote("Consume no longer from a queue.", (("queue", str),), usage="QUEUE", required=1),
    "disable_events": Remote("Tell no more of each task's life."),
    "enable_events": Remote("Tell of each task's life, for monitors."),
    "heartbeat": Remote("A sign of life, now."),
    "pool_grow": Remote("So many more at once.", (("n", int),), usage="[N=1]"),
    "pool_restart": Remote("New processes in place of the present ones."),
    "pool_shrink": Remote("So many fewer at once.", (("n", int),), usage="[N=1]"),
    "rate_limit": Remote(
        "How often a task may start: 5/s, 5/m, 5/h; 0 lifts it.", (("task_name", str), ("rate_limit", str)), usage="TASK RATE", required=2
    ),
    "revoke": Remote("These tasks shall not run.", rest="task_id", usage="ID…", required=1),
    "revoke_by_stamped_headers": Remote("Nor those with such a stamp.", rest="headers", usage="key=value…", required=1),
    "shutdown": Remote("Stop as on SIGTERM."),
    "terminate": Remote("Revoke, and stop what runs with this signal.", (("signal", str),), rest="task_id", usage="SIGNAL ID…", required=2),
    "time_limit": Remote(
        "New limits in seconds for a task.", (("task_name", str), ("soft", float), ("hard", float)), usage="TASK SOFT [HARD]", required=2
    ),
}


# -- the commands ---------------------------------------------------------------------------------------------------


def _remote_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-j", "--json", "as_json", is_flag=True, help="For machines: JSON on stdout."),
        click.option("-d", "--destination", type=comma_separated, metavar="NODES", help="Only these: `celeriac@a,celeriac@b`."),
        click.option(
            "-t", "--timeout", type=float, default=1.0, show_default=True, metavar="SECONDS", help="How long to wait for answers."
        ),
    ):
        function = option(function)
    return function


def _list_option(commands: dict[str, Remote]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            formatter = ctx.make_formatter()
            with formatter.section("Commands"):
                formatter.write_dl([(f"{name} {remote.usage}".strip(), remote.about) for name, remote in commands.items()])
            click.echo(formatter.getvalue(), nl=False)
            ctx.exit()

    return click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=show, help="The commands there are.")


class RemoteCommand(Command):
    """Its --help ends with the table of commands."""

    commands: dict[str, Remote] = {}

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(f"{name} {remote.usage}".strip(), remote.about) for name, remote in self.commands.items()])
        super().format_epilog(ctx, formatter)


class InspectCommand(RemoteCommand):
    commands = INSPECT


class ControlCommand(RemoteCommand):
    commands = CONTROL


def _complete(commands: dict[str, Remote]) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name, help=remote.about) for name, remote in commands.items() if name.startswith(incomplete)]

    return complete


@click.command(cls=Command)
@_remote_options
@click.pass_obj
def status(session: Session, timeout: float, destination: list[str] | None, as_json: bool) -> None:
    """Show which workers are online."""
    json = as_json or session.json
    say = None if json else lambda reply: session.say_reply(reply, show_body=False)
    _say_all(session, session.app.control.inspect(destination=destination, timeout=timeout, callback=say).ping(), json)


@click.command(
    cls=InspectCommand, epilog="\b\nExamples:\n  celeriac -A proj inspect active\n  celeriac -A proj inspect stats -d mail@host --json"
)
@click.argument("command", shell_complete=_complete(INSPECT))
@click.argument("arguments", nargs=-1)
@_list_option(INSPECT)
@_remote_options
@click.pass_obj
def inspect(session: Session, command: str, arguments: Sequence[str], timeout: float, destination: list[str] | None, as_json: bool) -> None:
    """Ask the workers COMMAND; nothing is changed by it."""
    given = _arguments("inspect", INSPECT, command, arguments)
    json = as_json or session.json
    questions = session.app.control.inspect(destination=destination, timeout=timeout, callback=None if json else session.say_reply)
    _say_all(session, questions.request(command, **given), json)


@click.command(
    cls=ControlCommand,
    epilog="\b\nExamples:\n  celeriac -A proj control rate_limit proj.tasks.mail 10/m\n  celeriac -A proj control pool_grow 2 -d mail@host",
)
@click.argument("command", shell_complete=_complete(CONTROL))
@click.argument("arguments", nargs=-1)
@_list_option(CONTROL)
@_remote_options
@click.pass_obj
def control(session: Session, command: str, arguments: Sequence[str], timeout: float, destination: list[str] | None, as_json: bool) -> None:
    """Tell the workers COMMAND."""
    given = _arguments("control", CONTROL, command, arguments)
    json = as_json or session.json
    remote = session.app.control
    replies: list[dict[str, Any]] | None
    if command in ("revoke", "terminate"):
        replies = _revoke(session, given["task_id"], given.get("signal"), json)
    elif command == "revoke_by_stamped_headers":
        replies = remote.revoke_by_stamped_headers(_headers(given["headers"]), reply=True)
        if replies is None:
            raise exits.CommandFailed("No task with such a stamp waits or runs.", exits.FAILED)
        _say_each(session, replies, json)
    elif command == "shutdown":
        replies = _shutdown(session, destination, json)
    else:
        replies = remote.broadcast(command, given, destination, reply=True, timeout=timeout, callback=None if json else session.say_reply)
    if not replies:
        raise exits.NobodyReplied
    if json:
        session.say_json(replies)
    if any("error" in reply for answer in replies for reply in answer.values() if isinstance(reply, dict)):
        raise click.exceptions.Exit(exits.FAILED)


# -- steps ----------------------------------------------------------------------------------------------------------


def _say_all(session: Session, replies: dict[str, Any] | None, json: bool) -> None:
    if not replies:
        raise exits.NobodyReplied
    if json:
        session.say_json(replies)
    elif not session.quiet:
        session.say(f"\n{plural(len(replies), 'node')} online.")


def _say_each(session: Session, replies: list[dict[str, Any]], json: bool) -> None:
    if not json:
        for reply in replies:
            session.say_reply(reply)


def _revoke(session: Session, ids: list[str], signal: str | None, json: bool) -> list[dict[str, Any]]:
    """The engine does it, with or without workers; so the engine is who answers."""
    found = session.app.control.revoke_ids(ids, terminate=signal is not None, signal=signal or "SIGTERM")
    words = {
        "waiting": "waited, is revoked",
        "running": "is running and is told to stop" if signal else "is running and goes on; `control terminate SIGTERM ID` stops it",
        "unknown": "is in no queue; should it come, it will be dropped",
    }
    text = "\n".join(f"{id}: {words.get(found.get(id, 'unknown'), found.get(id))}" for id in ids)
    replies = [{"engine": {"ok": text, "tasks": found}}]
    _say_each(session, replies, json)
    return replies


def _shutdown(session: Session, destination: list[str] | None, json: bool) -> list[dict[str, Any]]:
    """Workers do not answer this; whoever lives has been told."""
    told = [node.name for node in live_nodes(session.app.broker) if not destination or node.name in destination]
    session.app.control.shutdown(destination=destination)
    replies = [{name: {"ok": "shutdown requested"}} for name in told]
    _say_each(session, replies, json)
    return replies


def _arguments(kind: str, commands: dict[str, Remote], command: str, given: Sequence[str]) -> dict[str, Any]:
    """The command's arguments by name; a wrong command or argument is an error that shows the right ones."""
    remote = commands.get(command)
    if remote is None:
        from difflib import get_close_matches

        close = get_close_matches(command, commands, n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise click.UsageError(f"Command {command} not recognized. {hint}Available {kind} commands: {', '.join(commands)}")
    usage = f"`{kind} {command} {remote.usage}`".replace(" `", "`")
    if len(given) < remote.required:
        raise click.UsageError(f"{command} needs more arguments: {usage}")
    if len(given) > len(remote.arguments) and remote.rest is None:
        raise click.UsageError(f"{command} takes no argument {given[len(remote.arguments)]!r}: {usage}")
    found: dict[str, Any] = {}
    for (name, convert), text in zip(remote.arguments, given, strict=False):
        try:
            found[name] = convert(text)
        except ValueError as problem:
            raise click.UsageError(f"{name}: {problem} ({usage})") from None
    if remote.rest is not None:
        found[remote.rest] = list(given[len(remote.arguments) :])
    return found


def _headers(pairs: Sequence[str]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise click.UsageError(f"{pair!r} is not key=value.")
        headers.setdefault(name, []).append(value)
    return headers
