"""What all commands share: the app that `-A` names, and how to say things to people and to machines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from textwrap import indent
from typing import TYPE_CHECKING, Any

import click
import msgspec

from . import exits

if TYPE_CHECKING:
    from ..app import Celeriac

UNKNOWN = "–"
"""In a table: a number that nobody can say."""


class Session:
    """One call of the command line. Options may stand before the command or after it; the app is looked for when it is first needed."""

    def __init__(self, app: Celeriac | None = None) -> None:
        self.app_path: str | None = None
        self.broker_url: str | None = None
        self.result_backend: str | None = None
        self.config: str | None = None
        self.workdir: str | None = None
        self.no_color = bool(os.environ.get("NO_COLOR"))
        self.quiet = False
        self.json = False
        self._app = app

    # -- the app -----------------------------------------------------------------------------------------------

    @property
    def app(self) -> Celeriac:
        """The app of `-A`, or of CELERIAC_APP or CELERY_APP; without any, one that only knows its engine, if something names that."""
        if self._app is None:
            self._app = self._loaded_app(bare_allowed=True)
        return self._app

    @property
    def app_with_tasks(self) -> Celeriac:
        """The app of `-A` with all its tasks: for commands that make no sense without them."""
        return self.app_including(())

    def app_including(self, modules: Sequence[str]) -> Celeriac:
        """`app_with_tasks`, with what these modules define too."""
        from . import finder

        if self._app is None:
            self._app = self._loaded_app(bare_allowed=False)
        finder.load_tasks(self._app, modules, self.app_name or "")
        return self._app

    @property
    def app_name(self) -> str | None:
        """What `-A` or the environment says."""
        return self.app_path or os.environ.get("CELERIAC_APP") or os.environ.get("CELERY_APP")

    def _loaded_app(self, bare_allowed: bool) -> Celeriac:
        from . import finder

        self.enter_workdir()
        # The environment goes before all other settings, and worker processes that start from nothing see it too.
        if self.broker_url:
            os.environ["CELERY_BROKER_URL"] = self.broker_url
        if self.result_backend:
            os.environ["CELERY_RESULT_BACKEND"] = self.result_backend
        if self.config:
            os.environ[finder.CONFIG_MODULE] = self.config
        path = self.app_name
        if path is None:
            if not bare_allowed or not (self.config or os.environ.get("CELERY_BROKER_URL")):
                raise exits.CommandFailed(finder.no_app_given(bare_allowed), exits.WRONG_CALL)
            app = finder.bare_app()
        else:
            app = finder.find_app(path)
        app.set_default()
        app.set_current()
        return app

    def enter_workdir(self) -> None:
        """Goes to `--workdir`, and lets modules be imported from the current directory, as `python -m` does."""
        if self.workdir is not None:
            try:
                os.chdir(self.workdir)
            except OSError as problem:
                raise exits.CommandFailed(f"Cannot enter --workdir {self.workdir!r}: {problem.strerror}.", exits.WRONG_CALL) from None
            self.workdir = None
        here = os.getcwd()
        if here not in sys.path:
            sys.path.insert(0, here)

    # -- saying --------------------------------------------------------------------------------------------------

    def style(self, text: str, **how: Any) -> str:
        return text if self.no_color else click.style(text, **how)

    def say(self, text: str = "") -> None:
        click.echo(text, color=False if self.no_color else None)

    def remark(self, text: str) -> None:
        """Something worth knowing that is not the answer: stderr, not with -q."""
        if not self.quiet:
            click.echo(text, err=True, color=False if self.no_color else None)

    def say_json(self, value: Any) -> None:
        """One line to a program, several to a person."""
        text = as_json(value)
        click.echo(text if sys.stdout.isatty() else msgspec.json.format(text, indent=-1))

    def say_reply(self, reply: Mapping[str, Any], show_body: bool = True) -> None:
        """One node's answer in Celery's form: `->  node: OK` and the answer below, indented."""
        for node, answer in reply.items():
            word, body = self.pretty(answer)
            arrow = "" if self.quiet else self.style("->", fg="white", bold=True)
            self.say(f"{arrow}  {self.style(f'{node}: ', fg='cyan', bold=True)}{word}")
            if show_body and body:
                self.say(indent(body, "    "))

    def pretty(self, answer: Any) -> tuple[str, str]:
        """(OK or ERROR, the answer as text)."""
        ok, error = self.style("OK", fg="green", bold=True), self.style("ERROR", fg="red", bold=True)
        if isinstance(answer, list):
            return ok, "\n".join(f"{self.style('*', fg='white')} {item}" for item in answer) or "- empty -"
        if isinstance(answer, dict):
            if "ok" in answer:
                return ok, indent(self.pretty(answer["ok"])[1], "    ")
            if "error" in answer:
                return error, indent(self.pretty(answer["error"])[1], "    ")
            return ok, as_json(answer)
        return ok, answer if isinstance(answer, str) else repr(answer)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Columns as wide as they need to be; numbers to the right."""
        lines = [[_cell(value) for value in row] for row in rows]
        numeric = [bool(lines) and all(_is_number(line[at]) for line in lines) for at in range(len(heads))]
        widths = [max(len(head), *(len(line[at]) for line in lines), 0) for at, head in enumerate(heads)]
        for number, line in enumerate([list(heads), *lines]):
            cells = [text.rjust(widths[at]) if numeric[at] else text.ljust(widths[at]) for at, text in enumerate(line)]
            text = "  ".join(cells).rstrip()
            self.say(self.style(text, bold=True) if number == 0 else text)


def as_json(value: Any) -> str:
    """Indented JSON, keys sorted; what JSON has no word for is its repr."""
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_plain, builtin_types=())
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=2).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return repr(value)


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _is_number(text: str) -> bool:
    return text in ("", UNKNOWN) or text.lstrip("-").isdigit()


def plural(count: int, noun: str, nouns: str = "") -> str:
    """`1 node`, `2 nodes`; `2 entries`, when the plural is another word."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"
