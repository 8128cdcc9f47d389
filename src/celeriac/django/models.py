"""What Celeriac keeps in the project's database. `TaskResult` and `GroupResult` have the fields that users of django-celery-results know, and a few more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..contracts.schedules import Misfire, Overlap
from ..core import schedules, states
from ..core.schedules import BaseSchedule
from ..core.schedules.sun import EVENTS as SOLAR_EVENTS

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
    date_created = models.DateTimeField(_("first stored"), default=timezone.now, db_index=True)
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


# -- schedules ---------------------------------------------------------------------------------------------------------------

TABLES_OF_SCHEDULES = ("interval", "crontab", "solar", "clocked")


class IntervalSchedule(models.Model):
    """Every so often."""

    DAYS, HOURS, MINUTES, SECONDS, MICROSECONDS = "days", "hours", "minutes", "seconds", "microseconds"
    PERIOD_CHOICES = (
        (DAYS, _("Days")),
        (HOURS, _("Hours")),
        (MINUTES, _("Minutes")),
        (SECONDS, _("Seconds")),
        (MICROSECONDS, _("Microseconds")),
    )
    every = models.IntegerField(_("number of periods"), validators=[MinValueValidator(1)])
    period = models.CharField(_("period"), max_length=24, choices=PERIOD_CHOICES)

    class Meta:
        app_label = "celeriac"
        ordering = ("period", "every")
        verbose_name = _("interval")
        verbose_name_plural = _("intervals")

    def __str__(self) -> str:
        return f"every {self.every} {self.period}" if self.every != 1 else f"every {self.period.removesuffix('s')}"

    @property
    def schedule(self) -> BaseSchedule:
        return schedules.schedule(timedelta(**{self.period: self.every}))

    @classmethod
    def from_schedule(cls, schedule: Any, period: str = SECONDS) -> IntervalSchedule:
        every = max(int(schedule.run_every.total_seconds()), 1)
        return cls.objects.filter(every=every, period=period).first() or cls(every=every, period=period)


class CrontabSchedule(models.Model):
    """At these minutes, hours and days, in this time zone."""

    minute = models.CharField(_("minute(s)"), max_length=240, default="*", help_text=_("`0`, `*/15`, `0,30`"))
    hour = models.CharField(_("hour(s)"), max_length=96, default="*", help_text=_("`9-17`"))
    day_of_month = models.CharField(_("day(s) of the month"), max_length=124, default="*", help_text=_("`1,15`"))
    month_of_year = models.CharField(_("month(s)"), max_length=64, default="*", help_text=_("`1-6`, `jan`"))
    day_of_week = models.CharField(_("day(s) of the week"), max_length=64, default="*", help_text=_("`mon-fri`; 0 is Sunday"))
    timezone = models.CharField(_("time zone"), max_length=63, default="UTC", help_text=_("`Asia/Kathmandu`"))

    class Meta:
        app_label = "celeriac"
        ordering = ("month_of_year", "day_of_month", "day_of_week", "hour", "minute", "timezone")
        verbose_name = _("crontab")
        verbose_name_plural = _("crontabs")

    def __str__(self) -> str:
        return f"{self.minute} {self.hour} {self.day_of_month} {self.month_of_year} {self.day_of_week} {self.timezone}"

    @property
    def schedule(self) -> BaseSchedule:
        return schedules.crontab(
            minute=self.minute,
            hour=self.hour,
            day_of_week=self.day_of_week,
            day_of_month=self.day_of_month,
            month_of_year=self.month_of_year,
            tz=str(self.timezone),
        )

    def clean(self) -> None:
        _checked(lambda: self.schedule)


class SolarSchedule(models.Model):
    """When the sun does this, seen from there."""

    event = models.CharField(_("event"), max_length=24, choices=[(event, event.replace("_", " ")) for event in sorted(SOLAR_EVENTS)])
    latitude = models.DecimalField(
        _("latitude"), max_digits=9, decimal_places=6, validators=[MinValueValidator(-90), MaxValueValidator(90)]
    )
    longitude = models.DecimalField(
        _("longitude"), max_digits=9, decimal_places=6, validators=[MinValueValidator(-180), MaxValueValidator(180)]
    )

    class Meta:
        app_label = "celeriac"
        ordering = ("event", "latitude", "longitude")
        unique_together = ("event", "latitude", "longitude")
        verbose_name = _("solar event")
        verbose_name_plural = _("solar events")

    def __str__(self) -> str:
        return f"{self.event.replace('_', ' ')} at {self.latitude}, {self.longitude}"

    @property
    def schedule(self) -> BaseSchedule:
        return schedules.solar(self.event, float(self.latitude), float(self.longitude))


class ClockedSchedule(models.Model):
    """Once, at this time."""

    clocked_time = models.DateTimeField(_("time"))

    class Meta:
        app_label = "celeriac"
        ordering = ("clocked_time",)
        verbose_name = _("point in time")
        verbose_name_plural = _("points in time")

    def __str__(self) -> str:
        return f"{self.clocked_time:%Y-%m-%d %H:%M:%S %Z}"

    @property
    def schedule(self) -> BaseSchedule:
        return schedules.clocked(self.clocked_time)


class PeriodicTask(models.Model):
    """An entry of beat's schedule. Saving or deleting one changes what beat sends, within seconds."""

    name = models.CharField(_("name"), max_length=200, unique=True)
    task = models.CharField(_("task"), max_length=200, help_text=_("`orders.tasks.clean_up`"))
    interval = models.ForeignKey(IntervalSchedule, models.CASCADE, null=True, blank=True, verbose_name=_("interval"))
    crontab = models.ForeignKey(CrontabSchedule, models.CASCADE, null=True, blank=True, verbose_name=_("crontab"))
    solar = models.ForeignKey(SolarSchedule, models.CASCADE, null=True, blank=True, verbose_name=_("solar event"))
    clocked = models.ForeignKey(ClockedSchedule, models.CASCADE, null=True, blank=True, verbose_name=_("point in time"))
    args = models.TextField(_("arguments"), blank=True, default="[]", help_text=_('JSON: `["a", 1]`'))
    kwargs = models.TextField(_("keyword arguments"), blank=True, default="{}", help_text=_('JSON: `{"days": 30}`'))
    queue = models.CharField(_("queue"), max_length=200, null=True, blank=True, default=None)
    exchange = models.CharField(_("exchange"), max_length=200, null=True, blank=True, default=None, help_text=_("RabbitMQ"))
    routing_key = models.CharField(_("routing key"), max_length=200, null=True, blank=True, default=None, help_text=_("RabbitMQ"))
    headers = models.TextField(_("headers"), blank=True, default="{}", help_text=_("JSON"))
    priority = models.PositiveIntegerField(_("priority"), null=True, blank=True, default=None, validators=[MaxValueValidator(9)])
    expires = models.DateTimeField(_("expires at"), null=True, blank=True, help_text=_("Nothing is sent after this time"))
    expire_seconds = models.PositiveIntegerField(
        _("expires after seconds"), null=True, blank=True, help_text=_("A message that nobody has started by then is not run")
    )
    one_off = models.BooleanField(_("once"), default=False, help_text=_("Sent once, and then no more"))
    start_time = models.DateTimeField(_("starts at"), null=True, blank=True, help_text=_("Nothing is sent before this time"))
    enabled = models.BooleanField(_("enabled"), default=True)
    misfire = models.CharField(
        _("misfire"),
        max_length=8,
        default=Misfire.ONCE.value,
        choices=[(Misfire.SKIP.value, _("skip")), (Misfire.ONCE.value, _("send once")), (Misfire.ALL.value, _("send all"))],
        help_text=_("What becomes of what was missed because no beat was there"),
    )
    overlap = models.CharField(
        _("overlap"),
        max_length=8,
        default=Overlap.ALLOW.value,
        choices=[
            (Overlap.ALLOW.value, _("send all the same")),
            (Overlap.SKIP.value, _("skip")),
            (Overlap.QUEUE.value, _("queue one")),
            (Overlap.CANCEL.value, _("cancel the one before")),
        ],
        help_text=_("When the task of the time before has not ended"),
    )
    last_run_at = models.DateTimeField(_("last sent"), null=True, blank=True, editable=False)
    total_run_count = models.PositiveIntegerField(_("times sent"), default=0, editable=False)
    date_changed = models.DateTimeField(_("changed"), auto_now=True)
    description = models.TextField(_("description"), blank=True)

    class Meta:
        app_label = "celeriac"
        ordering = ("name",)
        verbose_name = _("periodic task")
        verbose_name_plural = _("periodic tasks")

    def __str__(self) -> str:
        return f"{self.name}: {self.scheduler}"

    @property
    def scheduler(self) -> Any:
        """The row that says when."""
        return next((row for name in TABLES_OF_SCHEDULES if (row := getattr(self, name)) is not None), None)

    @property
    def schedule(self) -> BaseSchedule:
        return self.scheduler.schedule  # type: ignore[no-any-return]

    def clean(self) -> None:
        """Raises ValidationError, by field."""
        problems: dict[str, Any] = {}
        if sum(getattr(self, f"{name}_id") is not None for name in TABLES_OF_SCHEDULES) != 1:
            problems["interval"] = _("Choose one of interval, crontab, solar event and point in time.")
        for name, kind in (("args", list), ("kwargs", dict), ("headers", dict)):
            try:
                if not isinstance(msgspec.json.decode(getattr(self, name) or repr(kind())), kind):
                    problems[name] = _("It must be a JSON list.") if kind is list else _("It must be a JSON object.")
            except msgspec.DecodeError as problem:
                problems[name] = _("It is not JSON: %s") % problem
        if problems:
            raise ValidationError(problems)


def _checked(make: Callable[[], object]) -> None:
    try:
        make()
    except (ValueError, TypeError) as problem:
        raise ValidationError(str(problem)) from None
