"""Commands that take the global options too, wherever they stand, and end foreseeable trouble with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..core import errors
from . import exits
from .session import Session

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType
"""click's, in the versions where it is generic and in those where it is not."""


class CommaSeparated(ParamType):
    """`a,b` → ["a", "b"]."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        return value if isinstance(value, list) else [part.strip() for part in str(value).split(",") if part.strip()]


comma_separated = CommaSeparated()


def _keeps(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value not in (None, False):
            setattr(ctx.ensure_object(Session), attribute, value)

    return callback


def global_options(hidden: bool) -> list[click.Option]:
    """New `Option`s for what `Session` keeps."""

    def option(*names: str, attribute: str, help: str, **more: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_keeps(attribute), hidden=hidden, is_eager=True, help=help, **more)

    return [
        option("-A", "--app", attribute="app_path", metavar="APP", help="Where the app is: `proj`, `proj.tasks`, `proj.tasks:app`."),
        option("-b", "--broker", attribute="broker_url", metavar="URL", help="Another engine than the app's: `sqlite:///celeriac.db`."),
        option("--result-backend", attribute="result_backend", metavar="URL", help="Keep results elsewhere than the app does."),
        option("--config", attribute="config", metavar="MODULE", help="A module with settings."),
        option("--workdir", attribute="workdir", metavar="FOLDER", help="Go there first."),
        option("-C", "--no-color", attribute="no_color", is_flag=True, help="Plain text."),
        option("-q", "--quiet", attribute="quiet", is_flag=True, help="The answer, and nothing around it."),
        option("--json", attribute="json", is_flag=True, help="For machines: JSON on stdout."),
        # Of Celery; they mean nothing here.
        click.Option(("--loader",), expose_value=False, hidden=True),
        click.Option(("--skip-checks",), expose_value=False, hidden=True, is_flag=True),
    ]


class _WithGlobalOptions(click.Command):
    """Knows the global options, hidden, since `celeriac worker -A proj` is as clear as `celeriac -A proj worker`."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        taken = {name for param in own if isinstance(param, click.Option) for name in param.opts}
        return [*own, *(option for option in _hidden_options() if not taken.intersection(option.opts))]

    def invoke(self, ctx: click.Context) -> Any:
        with plain_errors():
            return super().invoke(ctx)


_hidden: list[click.Option] = []


def _hidden_options() -> list[click.Option]:
    if not _hidden:
        _hidden.extend(global_options(hidden=True))
    return _hidden


class Command(_WithGlobalOptions):
    """A command of ours."""


class Group(_WithGlobalOptions, click.Group):
    """A group of commands of ours."""

    command_class = Command


class plain_errors:
    """Errors that a user can meet end the command with their sentence; all else is a bug and keeps its traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, traceback: Any) -> None:
        if isinstance(problem, errors.OperationalError):
            raise exits.CommandFailed(f"The engine cannot be used: {problem}", exits.UNAVAILABLE) from problem
        if isinstance(problem, errors.ImproperlyConfigured):
            raise exits.CommandFailed(str(problem), exits.CONFIG) from problem
        if isinstance(problem, errors.CeleriacError):
            raise exits.CommandFailed(str(problem) or repr(problem), exits.FAILED) from problem
