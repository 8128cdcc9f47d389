"""Fixtures for tests with real workers; a folder's conftest.py imports them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .engines import Home, Homes
from .workers import PATIENCE_SECONDS, Project

MakeProject = Callable[..., Project]


@pytest.fixture(scope="session")
def homes() -> Iterator[Homes]:
    """Where engines live, for the whole run."""
    homes = Homes()
    yield homes
    homes.close()


@pytest.fixture(scope="session")
def proxied_homes() -> Iterator[Homes]:
    """Servers of our own behind proxies, for tests that disturb them."""
    homes = Homes(proxied=True)
    yield homes
    homes.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """The engine under test. `every_engine()` runs a test on all of them; a test that says nothing runs on SQLite."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def home(homes: Homes, engine: str) -> Home:
    """Where the engine under test lives. A module that disturbs servers has its own."""
    return homes[engine]


@pytest.fixture
def make_project(request: pytest.FixtureRequest, tmp_path: Path, home: Home) -> Iterator[MakeProject]:
    """`make_project(**settings)`: a project in a directory of its own. All it starts is gone after the test.

    Its calls wait for as long as a test does: a server, or whoever writes to the file, may be kept from the processor for more than a second. In a test that is
    marked `hasty` they give up as they do by default.
    """
    made: list[Project] = []
    patience = {} if request.node.get_closest_marker("hasty") else {"broker_publish_timeout": PATIENCE_SECONDS}

    def make(**settings: Any) -> Project:
        settings = {**patience, **settings}
        made.append(Project(tmp_path / f"project-{len(made) + 1}", settings, home))
        return made[-1]

    yield make
    for project in made:
        project.close()


@pytest.fixture
def project(make_project: MakeProject) -> Project:
    """A project with no settings of its own."""
    return make_project()
