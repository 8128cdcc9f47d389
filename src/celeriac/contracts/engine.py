"""An engine that keeps messages and results in one place: what memory, SQLite, PostgreSQL and Redis give."""

from __future__ import annotations

from typing import Protocol

from .broker import Broker
from .joins import Joins
from .results import ResultBackend


class Engine(Broker, ResultBackend, Joins, Protocol):
    """All roles in one object, so that a settlement with its record and its join is one step."""
