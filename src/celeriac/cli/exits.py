"""How a command ends badly: with a sentence on stderr and an exit code of sysexits.h, as Celery's."""

from __future__ import annotations

from typing import IO, Any

import click

FAILED = 1
WRONG_CALL = 2
"""What click itself uses, and Celery, for an option or an `-A` that makes no sense."""
USAGE = 64
UNAVAILABLE = 69
CANNOT_CREATE = 73
NOT_YET = 75
CONFIG = 78


class CommandFailed(click.ClickException):
    """Shown as `Error: …`, without a traceback."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = exit_code  # click declares it for the class

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"{click.style('Error', fg='red')}: {self.message}", file=file, err=file is None)


class NobodyReplied(CommandFailed):
    def __init__(self) -> None:
        super().__init__("No nodes replied within time constraint", UNAVAILABLE)
