"""Real processes and signals."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fixtures import MakeProject, engine, home, homes, project
from tests.support.fixtures import make_project as make_hasty_project
from tests.support.workers import PATIENCE_SECONDS

__all__ = ["engine", "home", "homes", "make_hasty_project", "project"]


@pytest.fixture
def make_project(make_hasty_project: MakeProject) -> MakeProject:
    """One whose calls wait for as long as a test does: a server, or whoever writes to the file, may be kept from the processor for more than a second."""

    def make(**settings: Any) -> Any:
        return make_hasty_project(**{"broker_publish_timeout": PATIENCE_SECONDS, **settings})

    return make
