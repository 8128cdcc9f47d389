"""Patching the standard library for greenlets.

It has to happen before anything else is imported, our own package included, so it is the first line of the program that such a process runs.
The supervisor never is patched.
"""

from __future__ import annotations

from importlib.util import find_spec

from ...core.errors import ImproperlyConfigured

_PATCH = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}


def start_line(pool: str) -> str:
    """The program, for `python -c`, of a spawned process of this pool."""
    run = "from celeriac.cli.spawned import main; main()"
    return f"{_PATCH[pool]}; {run}" if pool in _PATCH else run


def check_installed(pool: str) -> None:
    """Raises ImproperlyConfigured when the pool needs a package that is not there."""
    if pool in _PATCH and find_spec(pool) is None:
        raise ImproperlyConfigured(f"--pool={pool} needs the package {pool}: pip install 'celeriac[{pool}]'.")
