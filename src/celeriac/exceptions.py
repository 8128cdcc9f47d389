"""Celeriac's errors, where Celery's users look for them."""

from __future__ import annotations

from .core.errors import *  # noqa: F403
from .core.errors import CeleriacError

CeleryError = CeleriacError
"""Celery's name for the base of all errors."""
