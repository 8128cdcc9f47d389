from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    operations = [
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
                ("date_created", models.DateTimeField(auto_now_add=True, db_index=True, verbose_name="first stored")),
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
    ]
