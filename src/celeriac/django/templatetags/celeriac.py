"""`{% load celeriac %}`: a task's progress in a page."""

from __future__ import annotations

from typing import Any

from django import template
from django.core.exceptions import SynchronousOnlyOperation
from django.urls import reverse
from django.utils.translation import gettext as _

from ...core.errors import CeleriacError
from .. import progress
from ..keys import id_of, key_of

register = template.Library()


@register.inclusion_tag("celeriac/progress.html")
def task_progress(task: Any, label: str = "", next: str = "") -> dict[str, Any]:
    """A progress bar that lives, for a task's id or result. `label` is its name for screen readers, `next` a page to go to once the task has succeeded."""
    try:
        status: progress.Status = progress.status_of(id_of(task))
    except (CeleriacError, OSError, SynchronousOnlyOperation):  # the page must not fail for it; the browser will ask
        status = progress.describe(None)
    key = key_of(task)
    return {
        "label": label or _("Progress"),
        "next": next,
        "status": status,
        "shown": 100 if status["ready"] else status["percent"],
        "status_url": reverse("celeriac:status", args=[key]),
        "events_url": reverse("celeriac:events", args=[key]),
    }


@register.simple_tag
def task_status_url(task: Any) -> str:
    """Where the status of this task is, as JSON: for scripts of one's own."""
    return str(reverse("celeriac:status", args=[key_of(task)]))
