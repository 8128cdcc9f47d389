"""An engine that keeps messages and results in one place: what memory, SQLite, PostgreSQL and Redis give."""

from __future__ import annotations

from typing import Protocol

from .broker import Broker
from .results import ResultBackend


class Engine(Broker, ResultBackend, Protocol):
    """Both roles in one object, so that a settlement with its record is one step."""
