"""`celeriac report`: what a bug report should contain, without secrets."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from ..core.settings import mask_url
from .command import Command
from .session import Session, as_json

if TYPE_CHECKING:
    from ..app import Celeriac

_PACKAGES = ("msgspec", "click", "redis", "psycopg", "pika", "Django", "gevent", "eventlet", "watchfiles", "celery")


def version() -> str:
    """Celeriac's version."""
    try:
        return metadata.version("celeriac")
    except metadata.PackageNotFoundError:
        import celeriac

        return str(getattr(celeriac, "__version__", "of unknown version"))


@click.command(cls=Command)
@click.pass_obj
def report(session: Session) -> None:
    """Show versions, the engine and the settings that differ from the defaults, for a bug report. Passwords are masked."""
    parts = _report(session.app)
    if session.json:
        session.say_json(parts)
        return
    session.say("software  -> " + "  ".join(f"{name}:{number}" for name, number in parts["software"].items()))
    session.say("platform  -> " + "  ".join(f"{name}:{value}" for name, value in parts["platform"].items()))
    session.say("engine    -> " + "  ".join(f"{name}:{value}" for name, value in parts["engine"].items()))
    session.say("\n".join(["settings  ->", *(f"    {name}: {_brief(value)}" for name, value in sorted(parts["settings"].items()))]))
    for remark in parts["remarks"]:
        session.say(f"remark    -> {remark}")


def _report(app: Celeriac) -> dict[str, Any]:
    software = {"celeriac": version(), "py": platform.python_version()}
    for name in _PACKAGES:
        try:
            software[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "software": software,
        "platform": {
            "system": platform.system(),
            "release": platform.release(),
            "arch": platform.machine(),
            "imp": platform.python_implementation(),
            "executable": sys.executable,
        },
        "engine": {
            "transport": app.broker.capabilities.engine,
            "broker": mask_url(app.broker.url),
            "results": "with the messages" if app.results_with_broker else mask_url(str(app.backend.url)),
        },
        "settings": app.conf.table(with_defaults=False, censored=True),
        "remarks": list(app.conf.remarks),
    }


def _brief(value: Any) -> str:
    return as_json(value) if isinstance(value, (dict, list)) else repr(value)
