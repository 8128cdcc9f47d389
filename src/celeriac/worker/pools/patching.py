"""Patching the standard library for greenlets: the first thing such a process does, so this file imports next to nothing."""

from __future__ import annotations

from ...core.errors import ImproperlyConfigured


def patch(kind: str) -> None:
    """Patches the standard library. Call it before anything else is imported.

    Raises ImproperlyConfigured when the package is not installed.
    """
    try:
        if kind == "gevent":
            from gevent import monkey

            monkey.patch_all()
        else:
            import eventlet

            eventlet.monkey_patch()
    except ImportError:
        raise ImproperlyConfigured(f"--pool={kind} needs the package {kind}: pip install 'celeriac[{kind}]'.") from None
