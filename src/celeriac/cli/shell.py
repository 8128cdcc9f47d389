"""`celeriac shell`: a Python shell in which the app and its tasks are at hand."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from . import exits
from .command import Command
from .session import Session

_PUBLIC = ("Task", "chain", "chord", "chunks", "group", "signature", "subtask", "xmap", "xstarmap", "AsyncResult", "states")


@click.command(cls=Command, epilog="\b\nExamples:\n  celeriac -A proj shell\n  >>> add.delay(2, 2).get(timeout=10)")
@click.option("-I", "--ipython", is_flag=True, help="IPython, and nothing else.")
@click.option("-B", "--bpython", is_flag=True, help="bpython, and nothing else.")
@click.option("--python", is_flag=True, help="Python's own shell.")
@click.option("-T", "--without-tasks", is_flag=True, help="Without the tasks as names.")
@click.option("--eventlet", is_flag=True, help="With eventlet's patches.")
@click.option("--gevent", is_flag=True, help="With gevent's patches.")
@click.pass_obj
def shell(session: Session, ipython: bool, bpython: bool, python: bool, without_tasks: bool, eventlet: bool, gevent: bool) -> None:
    """Start a Python shell: `app` is the app, and each task bears its function's name."""
    if gevent:
        from gevent import monkey

        monkey.patch_all()
    if eventlet:
        import eventlet as eventlet_package

        eventlet_package.monkey_patch()
    names = names_at_hand(session, without_tasks)
    if ipython or not (bpython or python):
        try:
            ipython_package = import_module("IPython")
        except ImportError:
            if ipython:
                raise exits.CommandFailed("IPython is not installed here: `pip install ipython`.", exits.FAILED) from None
        else:
            ipython_package.start_ipython(argv=[], user_ns=names)
            return
    if bpython or not python:
        try:
            bpython_package = import_module("bpython")
        except ImportError:
            if bpython:
                raise exits.CommandFailed("bpython is not installed here: `pip install bpython`.", exits.FAILED) from None
        else:
            bpython_package.embed(names)
            return
    _plain_shell(names)


def names_at_hand(session: Session, without_tasks: bool = False) -> dict[str, Any]:
    """What the shell knows by name."""
    import celeriac

    app = session.app_with_tasks if session.app_name is not None else session.app
    names: dict[str, Any] = {name: getattr(celeriac, name) for name in _PUBLIC if hasattr(celeriac, name)}
    if not without_tasks:
        names.update({task.name.rpartition(".")[2]: task for task in app.tasks.values() if not task.name.startswith("celery.")})
    return {**names, "app": app, "celery": app, "celeriac": app}


def _plain_shell(names: dict[str, Any]) -> None:
    import code

    try:
        import readline
        import rlcompleter
    except ImportError:
        pass
    else:
        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    code.interact(local=names)
