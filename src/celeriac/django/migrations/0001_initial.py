from __future__ import annotations

import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    operations = [
        migrations.CreateModel(
            name="ClockedSchedule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("clocked_time", models.DateTimeField(verbose_name="time")),
            ],
            options={
                "verbose_name": "point in time",
                "verbose_name_plural": "points in time",
                "ordering": ("clocked_time",),
            },
        ),
        migrations.CreateModel(
            name="CrontabSchedule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("minute", models.CharField(default="*", help_text="`0`, `*/15`, `0,30`", max_length=240, verbose_name="minute(s)")),
                ("hour", models.CharField(default="*", help_text="`9-17`", max_length=96, verbose_name="hour(s)")),
                ("day_of_month", models.CharField(default="*", help_text="`1,15`", max_length=124, verbose_name="day(s) of the month")),
                ("month_of_year", models.CharField(default="*", help_text="`1-6`, `jan`", max_length=64, verbose_name="month(s)")),
                (
                    "day_of_week",
                    models.CharField(default="*", help_text="`mon-fri`; 0 is Sunday", max_length=64, verbose_name="day(s) of the week"),
                ),
                ("timezone", models.CharField(default="UTC", help_text="`Asia/Kathmandu`", max_length=63, verbose_name="time zone")),
            ],
            options={
                "verbose_name": "crontab",
                "verbose_name_plural": "crontabs",
                "ordering": ("month_of_year", "day_of_month", "day_of_week", "hour", "minute", "timezone"),
            },
        ),
        migrations.CreateModel(
            name="GroupResult",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("group_id", models.CharField(max_length=255, unique=True, verbose_name="group id")),
                ("date_created", models.DateTimeField(auto_now_add=True, db_index=True, verbose_name="created")),
                ("date_done", models.DateTimeField(db_index=True, verbose_name="saved")),
                ("content_type", models.CharField(default="application/json", max_length=128, verbose_name="content type")),
                ("content_encoding", models.CharField(default="utf-8", max_length=64, verbose_name="content encoding")),
                ("result", models.TextField(help_text="JSON: the ids of its members", null=True, verbose_name="result")),
            ],
            options={
                "verbose_name": "group result",
                "verbose_name_plural": "group results",
                "ordering": ("-date_done",),
            },
        ),
        migrations.CreateModel(
            name="IntervalSchedule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("every", models.IntegerField(validators=[django.core.validators.MinValueValidator(1)], verbose_name="number of periods")),
                (
                    "period",
                    models.CharField(
                        choices=[
                            ("days", "Days"),
                            ("hours", "Hours"),
                            ("minutes", "Minutes"),
                            ("seconds", "Seconds"),
                            ("microseconds", "Microseconds"),
                        ],
                        max_length=24,
                        verbose_name="period",
                    ),
                ),
            ],
            options={
                "verbose_name": "interval",
                "verbose_name_plural": "intervals",
                "ordering": ("period", "every"),
            },
        ),
        migrations.CreateModel(
            name="OutboxParcel",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("content", models.TextField()),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "verbose_name": "outbox parcel",
            },
        ),
        migrations.CreateModel(
            name="TaskResult",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("task_id", models.CharField(max_length=255, unique=True, verbose_name="task id")),
                (
                    "periodic_task_name",
                    models.CharField(
                        help_text="The entry of the schedule that sent it", max_length=255, null=True, verbose_name="periodic task"
                    ),
                ),
                ("task_name", models.CharField(db_index=True, max_length=255, null=True, verbose_name="task")),
                ("task_args", models.TextField(null=True, verbose_name="arguments")),
                ("task_kwargs", models.TextField(null=True, verbose_name="keyword arguments")),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("FAILURE", "FAILURE"),
                            ("PENDING", "PENDING"),
                            ("RECEIVED", "RECEIVED"),
                            ("RETRY", "RETRY"),
                            ("REVOKED", "REVOKED"),
                            ("STARTED", "STARTED"),
                            ("SUCCESS", "SUCCESS"),
                        ],
                        db_index=True,
                        default="PENDING",
                        max_length=50,
                        verbose_name="state",
                    ),
                ),
                ("worker", models.CharField(db_index=True, max_length=255, null=True, verbose_name="worker")),
                ("queue", models.CharField(max_length=255, null=True, verbose_name="queue")),
                ("content_type", models.CharField(default="application/json", max_length=128, verbose_name="content type")),
                ("content_encoding", models.CharField(default="utf-8", max_length=64, verbose_name="content encoding")),
                ("result", models.TextField(help_text="JSON: what the task returned, or its exception", null=True, verbose_name="result")),
                ("traceback", models.TextField(null=True, verbose_name="traceback")),
                ("meta", models.TextField(help_text="JSON: the children of the task", null=True, verbose_name="meta")),
                ("retries", models.PositiveIntegerField(default=0, verbose_name="retries")),
                (
                    "attempts",
                    models.TextField(
                        default="[]", help_text="JSON: every try, with its worker, start, run time and error", verbose_name="attempts"
                    ),
                ),
                ("root_id", models.CharField(max_length=255, null=True, verbose_name="root")),
                ("parent_id", models.CharField(max_length=255, null=True, verbose_name="parent")),
                ("group_id", models.CharField(max_length=255, null=True, verbose_name="group")),
                ("date_created", models.DateTimeField(db_index=True, default=django.utils.timezone.now, verbose_name="first stored")),
                ("date_started", models.DateTimeField(null=True, verbose_name="started")),
                ("date_done", models.DateTimeField(db_index=True, null=True, verbose_name="done")),
                ("stored_at", models.DateTimeField(db_index=True, verbose_name="last stored")),
            ],
            options={
                "verbose_name": "task result",
                "verbose_name_plural": "task results",
                "ordering": ("-stored_at",),
            },
        ),
        migrations.CreateModel(
            name="SolarSchedule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "event",
                    models.CharField(
                        choices=[
                            ("dawn_astronomical", "dawn astronomical"),
                            ("dawn_civil", "dawn civil"),
                            ("dawn_nautical", "dawn nautical"),
                            ("dusk_astronomical", "dusk astronomical"),
                            ("dusk_civil", "dusk civil"),
                            ("dusk_nautical", "dusk nautical"),
                            ("solar_noon", "solar noon"),
                            ("sunrise", "sunrise"),
                            ("sunset", "sunset"),
                        ],
                        max_length=24,
                        verbose_name="event",
                    ),
                ),
                (
                    "latitude",
                    models.DecimalField(
                        decimal_places=6,
                        max_digits=9,
                        validators=[django.core.validators.MinValueValidator(-90), django.core.validators.MaxValueValidator(90)],
                        verbose_name="latitude",
                    ),
                ),
                (
                    "longitude",
                    models.DecimalField(
                        decimal_places=6,
                        max_digits=9,
                        validators=[django.core.validators.MinValueValidator(-180), django.core.validators.MaxValueValidator(180)],
                        verbose_name="longitude",
                    ),
                ),
            ],
            options={
                "verbose_name": "solar event",
                "verbose_name_plural": "solar events",
                "ordering": ("event", "latitude", "longitude"),
                "unique_together": {("event", "latitude", "longitude")},
            },
        ),
        migrations.CreateModel(
            name="PeriodicTask",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=200, unique=True, verbose_name="name")),
                ("task", models.CharField(help_text="`orders.tasks.clean_up`", max_length=200, verbose_name="task")),
                ("args", models.TextField(blank=True, default="[]", help_text='JSON: `["a", 1]`', verbose_name="arguments")),
                ("kwargs", models.TextField(blank=True, default="{}", help_text='JSON: `{"days": 30}`', verbose_name="keyword arguments")),
                ("queue", models.CharField(blank=True, default=None, max_length=200, null=True, verbose_name="queue")),
                (
                    "exchange",
                    models.CharField(blank=True, default=None, help_text="RabbitMQ", max_length=200, null=True, verbose_name="exchange"),
                ),
                (
                    "routing_key",
                    models.CharField(blank=True, default=None, help_text="RabbitMQ", max_length=200, null=True, verbose_name="routing key"),
                ),
                ("headers", models.TextField(blank=True, default="{}", help_text="JSON", verbose_name="headers")),
                (
                    "priority",
                    models.PositiveIntegerField(
                        blank=True,
                        default=None,
                        null=True,
                        validators=[django.core.validators.MaxValueValidator(9)],
                        verbose_name="priority",
                    ),
                ),
                (
                    "expires",
                    models.DateTimeField(blank=True, help_text="Nothing is sent after this time", null=True, verbose_name="expires at"),
                ),
                (
                    "expire_seconds",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="A message that nobody has started by then is not run",
                        null=True,
                        verbose_name="expires after seconds",
                    ),
                ),
                ("one_off", models.BooleanField(default=False, help_text="Sent once, and then no more", verbose_name="once")),
                (
                    "start_time",
                    models.DateTimeField(blank=True, help_text="Nothing is sent before this time", null=True, verbose_name="starts at"),
                ),
                ("enabled", models.BooleanField(default=True, verbose_name="enabled")),
                (
                    "misfire",
                    models.CharField(
                        choices=[("skip", "skip"), ("once", "send once"), ("all", "send all")],
                        default="once",
                        help_text="What becomes of what was missed because no beat was there",
                        max_length=8,
                        verbose_name="misfire",
                    ),
                ),
                (
                    "overlap",
                    models.CharField(
                        choices=[
                            ("allow", "send all the same"),
                            ("skip", "skip"),
                            ("queue", "queue one"),
                            ("cancel", "cancel the one before"),
                        ],
                        default="allow",
                        help_text="When the task of the time before has not ended",
                        max_length=8,
                        verbose_name="overlap",
                    ),
                ),
                ("last_run_at", models.DateTimeField(blank=True, editable=False, null=True, verbose_name="last sent")),
                ("total_run_count", models.PositiveIntegerField(default=0, editable=False, verbose_name="times sent")),
                ("date_changed", models.DateTimeField(auto_now=True, verbose_name="changed")),
                ("description", models.TextField(blank=True, verbose_name="description")),
                (
                    "clocked",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="celeriac.clockedschedule",
                        verbose_name="point in time",
                    ),
                ),
                (
                    "crontab",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="celeriac.crontabschedule",
                        verbose_name="crontab",
                    ),
                ),
                (
                    "interval",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="celeriac.intervalschedule",
                        verbose_name="interval",
                    ),
                ),
                (
                    "solar",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="celeriac.solarschedule",
                        verbose_name="solar event",
                    ),
                ),
            ],
            options={
                "verbose_name": "periodic task",
                "verbose_name_plural": "periodic tasks",
                "ordering": ("name",),
            },
        ),
    ]
