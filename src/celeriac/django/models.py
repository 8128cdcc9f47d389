"""What Celeriac keeps in the project's database. `TaskResult` and `GroupResult` have the fields that users of django-celery-results know, and a few more."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from ..core import states

STATES = sorted(states.ALL_STATES)


class OutboxParcel(models.Model):
    """What was to be published within a transaction: in the database if that was committed, and gone once it is published."""

    content = models.TextField()
    """JSON: messages, and the joins that they are members of."""
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "celeriac"
        verbose_name = "outbox parcel"

    def __str__(self) -> str:
        return f"outbox parcel {self.pk}"


class TaskResult(models.Model):
    """What is known of a task's outcome: written by workers when `CELERY_RESULT_BACKEND = "django-db"`."""

    task_id = models.CharField(_("task id"), max_length=255, unique=True)
    periodic_task_name = models.CharField(
        _("periodic task"), max_length=255, null=True, help_text=_("The entry of the schedule that sent it")
    )
    task_name = models.CharField(_("task"), max_length=255, null=True, db_index=True)
    task_args = models.TextField(_("arguments"), null=True)
    task_kwargs = models.TextField(_("keyword arguments"), null=True)
    status = models.CharField(
        _("state"), max_length=50, default=states.PENDING, db_index=True, choices=[(state, state) for state in STATES]
    )
    worker = models.CharField(_("worker"), max_length=255, null=True, db_index=True)
    queue = models.CharField(_("queue"), max_length=255, null=True)
    content_type = models.CharField(_("content type"), max_length=128, default="application/json")
    content_encoding = models.CharField(_("content encoding"), max_length=64, default="utf-8")
    result = models.TextField(_("result"), null=True, help_text=_("JSON: what the task returned, or its exception"))
    traceback = models.TextField(_("traceback"), null=True)
    meta = models.TextField(_("meta"), null=True, help_text=_("JSON: the children of the task"))
    retries = models.PositiveIntegerField(_("retries"), default=0)
    attempts = models.TextField(_("attempts"), default="[]", help_text=_("JSON: every try, with its worker, start, run time and error"))
    root_id = models.CharField(_("root"), max_length=255, null=True)
    parent_id = models.CharField(_("parent"), max_length=255, null=True)
    group_id = models.CharField(_("group"), max_length=255, null=True)
    date_created = models.DateTimeField(_("first stored"), auto_now_add=True, db_index=True)
    date_started = models.DateTimeField(_("started"), null=True)
    date_done = models.DateTimeField(_("done"), null=True, db_index=True)
    stored_at = models.DateTimeField(_("last stored"), db_index=True)
    """Results expire from here."""

    class Meta:
        app_label = "celeriac"
        ordering = ("-stored_at",)
        verbose_name = _("task result")
        verbose_name_plural = _("task results")

    def __str__(self) -> str:
        return f"<Task: {self.task_id} ({self.status})>"

    def as_dict(self) -> dict[str, Any]:
        """As in django-celery-results: for a view that shows a result as JSON."""
        names = ("task_id", "task_name", "task_args", "task_kwargs", "status", "result", "date_done", "traceback", "meta", "worker")
        return {name: getattr(self, name) for name in names}


class GroupResult(models.Model):
    """What a saved group is made of (`GroupResult.save()`)."""

    group_id = models.CharField(_("group id"), max_length=255, unique=True)
    date_created = models.DateTimeField(_("created"), auto_now_add=True, db_index=True)
    date_done = models.DateTimeField(_("saved"), db_index=True)
    content_type = models.CharField(_("content type"), max_length=128, default="application/json")
    content_encoding = models.CharField(_("content encoding"), max_length=64, default="utf-8")
    result = models.TextField(_("result"), null=True, help_text=_("JSON: the ids of its members"))

    class Meta:
        app_label = "celeriac"
        ordering = ("-date_done",)
        verbose_name = _("group result")
        verbose_name_plural = _("group results")

    def __str__(self) -> str:
        return f"<Group: {self.group_id}>"

    def as_dict(self) -> dict[str, Any]:
        return {"group_id": self.group_id, "result": self.result, "date_done": self.date_done}
