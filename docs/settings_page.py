"""Writes settings.md from the table in celeriac/core/settings.py, so that the two cannot tell different things."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from celeriac.core import settings
from celeriac.core.celery_settings import MEANINGLESS

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

<!-- Written by scripts/settings-doc from the table in src/celeriac/core/settings.py; change it there. -->

Set them on the app before its first task is sent or run: `app.conf.task_time_limit = 60`, `app.conf.update(...)`, `app.config_from_object("proj.settings")`. With
`namespace="CELERY"` only names that begin with `CELERY_` count, as in `CELERY_TASK_TIME_LIMIT`. All settings are checked together at first use: an unknown name or an
impossible value is an error that says what would be right. Durations are seconds, or a `timedelta`.

Celery's older names, in capitals, are understood too; old and new names must not be mixed. An environment variable, where there is one, goes before everything else.
"""


def main() -> int:
    page = render()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") != page:
            print("docs/settings.md is not current; run scripts/settings-doc.", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page, encoding="utf-8")
    return 0


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in _sections():
        parts.append(f"\n## {title[0].upper()}{title[1:]}\n\n| setting | value | default | |\n|---|---|---|---|\n")
        parts += [_row(settings.SETTINGS[name]) for name in names]
    parts.append("\n## Celery's settings that have no meaning here\n\nThey are accepted; the worker says once, in a line each, why nothing follows from them.\n\n| setting | |\n|---|---|\n")  # fmt: skip
    parts += [f"| `{name}` | {reason} |\n" for name, (_, reason) in sorted(MEANINGLESS.items())]
    return "".join(parts)


def _sections() -> Iterator[tuple[str, list[str]]]:
    """The table's own headings (`# -- messages`), each with the settings below it."""
    title, names = "", list[str]()
    for line in inspect.getsource(settings.Settings).splitlines():
        if heading := re.match(r"    # -- (.+?)(?: -+)?$", line):
            if names:
                yield title, names
            title, names = heading[1], []
        elif (row := re.match(r"    (\w+): .*= _setting\(", line)) and row[1] in settings.SETTINGS:
            names.append(row[1])
    if names:
        yield title, names


def _row(line: settings.Setting) -> str:
    more = []
    if line.env:
        more.append(f"Environment: `{line.env}`.")
    if line.old_name:
        more.append(f"Celery's older name: `{line.old_name}`.")
    text = " ".join([line.sentence, *more]).replace("|", "\\|")
    return f"| `{line.name}` | {line.kind} | {_default(line.default)} | {text} |\n"


def _default(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{value!r}`".replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
