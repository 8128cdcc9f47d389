"""Fixtures for tests with real workers; a folder's conftest.py imports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .workers import Project

MakeProject = Callable[..., Project]


@pytest.fixture
def make_project(tmp_path: Path) -> Iterator[MakeProject]:
    """`make_project(**settings)`: a project in a directory of its own. All it starts is gone after the test."""
    made: list[Project] = []

    def make(**settings: Any) -> Project:
        made.append(Project(tmp_path / f"project-{len(made) + 1}", settings))
        return made[-1]

    yield make
    for project in made:
        project.close()


@pytest.fixture
def project(make_project: MakeProject) -> Project:
    """A project with default settings."""
    return make_project()
