"""`manage.py celeriac …`: the command line of Celeriac, with the project's app."""

from __future__ import annotations

import os
from argparse import REMAINDER
from typing import Any

from django.core.management.base import BaseCommand

from ...project import APP_PATH, ensure_app


class Command(BaseCommand):
    help = "Celeriac: worker, dev, status, why, doctor, … (manage.py celeriac --help)"
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        from celeriac.cli import doctor
        from celeriac.cli.main import add_command, main

        from ...doctor import examine

        add_command("dev", "celeriac.django.dev", "For development: runserver and a worker that reloads.")
        if examine not in doctor.further_checks:
            doctor.further_checks.append(examine)
        os.environ.setdefault("CELERIAC_APP", APP_PATH)
        main(_without_djangos_own(argv[2:]), app=ensure_app(), prog_name=f"{os.path.basename(argv[0])} {argv[1]}")

    def handle(self, *args: Any, **options: Any) -> None:
        """For `call_command("celeriac", "purge", "-f")`."""
        from celeriac.cli.main import cli
        from celeriac.cli.session import Session

        cli.main(args=[str(arg) for arg in args], prog_name="celeriac", obj=Session(ensure_app()), standalone_mode=False)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("args", nargs=REMAINDER)


def _without_djangos_own(arguments: list[str]) -> list[str]:
    """Without `--settings` and `--pythonpath`, which manage.py has acted on by now."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--settings", "--pythonpath"):
            next(rest, None)
        elif not argument.startswith(("--settings=", "--pythonpath=")):
            kept.append(argument)
    return kept
