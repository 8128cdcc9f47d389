"""Fault runs: real processes are killed, stopped and starved. The long ones are left out unless CELERIAC_CHAOS=1 (`make chaos`)."""

from __future__ import annotations

import os

import pytest

from tests.support.fixtures import engine, home, homes, make_project, project, proxied_homes

__all__ = ["engine", "home", "homes", "make_project", "project", "proxied_homes"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("CELERIAC_CHAOS"):
        return
    for item in items:
        if item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.skip(reason="a long fault run: make chaos"))
