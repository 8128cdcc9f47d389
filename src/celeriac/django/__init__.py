"""Celeriac in a Django project: add "celeriac.django" to INSTALLED_APPS, and nothing else is needed.

Settings named CELERY_… in the project's settings are the app's settings, the module `tasks` of each installed app is imported by workers, and `manage.py celeriac …` is the command line.
A project with the classic `proj/celery.py` keeps it: then that app is the one that is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tasks_backend import TasksBackend as TasksBackend

__all__ = ["TasksBackend"]


def __getattr__(name: str) -> Any:
    if name == "TasksBackend":  # not before Django is set up
        from .tasks_backend import TasksBackend

        return TasksBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
