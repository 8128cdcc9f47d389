"""Real processes and signals."""

from __future__ import annotations

from tests.support.fixtures import make_project, project

__all__ = ["make_project", "project"]
