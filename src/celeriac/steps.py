"""Durable steps of tasks; see `celeriac.tasks.steps`."""

from __future__ import annotations

from .tasks.steps import astep, sleep, step, wait_for_event

__all__ = ["astep", "sleep", "step", "wait_for_event"]
