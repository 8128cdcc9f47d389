"""The entry point. Each command's module is imported when it is called for, so that `celeriac --help` is quick."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from .command import Group, global_options
from .session import Session

if TYPE_CHECKING:
    from ..app import Celeriac

_COMMANDS: dict[str, tuple[str, str]] = {
    "worker": (".worker", "Start a worker."),
    "beat": (".beat", "Start a beat: send what is scheduled."),
    "schedule": (".schedule", "What is scheduled: list, add, pause, preview, history, …"),
    "status": (".remote", "Which workers are online."),
    "inspect": (".remote", "Ask workers: active, stats, registered, …"),
    "control": (".remote", "Tell workers: revoke, rate_limit, pool_grow, shutdown, …"),
    "why": (".calls", "Why a task is not running, or what became of it."),
    "graph": (".graph", "Draw a workflow: what has ended, what waits, what comes then."),
    "doctor": (".doctor", "Check the installation, and say what is wrong."),
    "call": (".calls", "Send a task by name."),
    "result": (".calls", "Show a task's result, or wait for it."),
    "list": (".queues", "Queues, tasks, nodes and dead letters at a glance."),
    "queues": (".queues", "Pause and resume queues."),
    "dead": (".queues", "List, replay and discard dead letters."),
    "purge": (".queues", "Throw away all waiting tasks."),
    "report": (".report", "Versions and settings, for a bug report."),
    "shell": (".shell", "A Python shell with the app and its tasks."),
    "completion": (".completion", "Set up completion with the Tab key."),
}
"""Name → (module, what it is for), in the order in which --help shows them. In its module, the command bears its name, with `_command`
where the name means something in Python."""

_LATER = {
    "events": "This version has no event monitor; `celeriac list` and `celeriac inspect active` show what goes on.",
    "multi": "This version has no `multi`: start each worker with `worker --detach --pidfile=/run/%n.pid -n NAME@%h`.",
    "migrate": "This version does not move messages between engines.",
    "upgrade": "Old setting names are accepted as they are.",
    "logtool": "There is no log tool.",
    "amqp": "This version speaks no AMQP.",
    "dashboard": "This version has no dashboard.",
}
"""What users of Celery may try, and what to do instead."""


def add_command(name: str, module: str, text: str) -> None:
    """A further command, for command lines that others call (`manage.py celeriac`)."""
    _COMMANDS.setdefault(name, (module, text))


class Commands(Group):
    """The top: finds a command's module by its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(_COMMANDS[cmd_name][0], __package__)
        found = getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_command")
        assert isinstance(found, click.Command)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in _LATER:
            from .exits import USAGE, CommandFailed

            raise CommandFailed(_LATER[args[0]], USAGE)
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


EPILOG = """
\b
Examples:
  celeriac -A proj worker -l info       run tasks; the app is in proj/celery.py
  celeriac -A proj call proj.tasks.add -a '[2, 2]'
  celeriac -A proj why ID               why is this task not running?
  celeriac -A proj doctor               is everything as it should be?

The app may also be named by CELERIAC_APP in the environment.
"""


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .report import version

        click.echo(version())
        ctx.exit()


@click.command(
    cls=Commands,
    epilog=EPILOG,
    params=[
        *global_options(hidden=False),
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Celeriac: background tasks for Python and Django."""
    ctx.ensure_object(Session)


def main(argv: list[str] | None = None, app: Celeriac | None = None, prog_name: str = "celeriac") -> Any:
    """Runs the command line and ends the process with its exit code. With `app`, no `-A` is needed."""
    return cli.main(args=argv, prog_name=prog_name, obj=Session(app))
