"""Real processes and signals."""

from __future__ import annotations

from tests.support.fixtures import engine, home, homes, make_project, project

__all__ = ["engine", "home", "homes", "make_project", "project"]
