"""What Celeriac keeps in the project's database."""

from __future__ import annotations

from django.db import models


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
