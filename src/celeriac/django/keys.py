"""Who may see how far a task is.

In URLs a task is named by a key: its id with the project's signature, so that only who was given the key can ask. Where the setting CELERIAC_PROGRESS_PERMISSION names a function of the project,
`may_see(user, task_id) -> bool`, the key is the id itself, and the function decides.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core import signing
from django.utils.module_loading import import_string

SALT = "celeriac.django.keys"


def key_of(task: Any) -> str:
    """The key of a task, by its result or its id."""
    return id_of(task) if _permission() else signing.dumps(id_of(task), salt=SALT)


def id_of(task: Any) -> str:
    """The id of a task, by its result or its id; a plain text, also where a template has made it one of its own."""
    return str.__str__(str(task))


def task_of(key: str, user: Any) -> str | None:
    """The id of the task that this key names, or None: this user is not to see it."""
    permission = _permission()
    if permission:
        return key if import_string(permission)(user, key) else None
    try:
        return str(signing.loads(key, salt=SALT))
    except signing.BadSignature:
        return None


def _permission() -> str | None:
    return getattr(settings, "CELERIAC_PROGRESS_PERMISSION", None)
