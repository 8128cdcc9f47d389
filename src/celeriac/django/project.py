"""The app of a Django project.

`-A celeriac.django.project` names it: processes that start from nothing (spawned workers) find it so, whether the project made it or we did.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from ..tasks import registry

if TYPE_CHECKING:
    from ..app import Celeriac

APP_PATH = "celeriac.django.project"


def ensure_app() -> Celeriac:
    """The app that the project made, in `proj/celery.py` say; or, where there is none, one that reads CELERY_… from Django's settings."""
    app = registry.current.app
    if app is None:
        from ..app import Celeriac

        app = Celeriac(_project_name())
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.autodiscover_tasks()
    return cast("Celeriac", app)


def even_priorities() -> None:
    """Where TASKS names our backend, tasks that say nothing of their priority have the one that Django's tasks have by default."""
    from django.conf import settings

    backends = getattr(settings, "TASKS", None) or {}
    if any(str(params.get("BACKEND", "")).startswith("celeriac.django") for params in backends.values()):
        from .tasks_backend import EVEN_PRIORITY

        ensure_app().add_defaults({"task_default_priority": EVEN_PRIORITY})


def _project_name() -> str:
    return os.environ.get("DJANGO_SETTINGS_MODULE", "django").partition(".")[0]


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import django
    from django.apps import apps

    if not apps.ready:
        django.setup()
    return ensure_app()
