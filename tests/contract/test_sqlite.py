"""The SQLite engine is a correct engine."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from celeriac.contracts.engine import Engine
from celeriac.core.clock import SYSTEM_CLOCK, Clock
from celeriac.engines.sqlite import SQLiteEngine
from celeriac.testing.contract import EngineContract, EngineMaker


class SQLiteMaker:
    capabilities = SQLiteEngine.capabilities

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> Engine:
        return SQLiteEngine(f"sqlite:///{self.path}", clock=clock, **options)

    def corrupt(self, engine: Engine, id: str) -> None:
        self.execute("UPDATE messages SET message = ? WHERE id = ?", b'{"id": "broken', id)

    def after_kill(self) -> None: ...

    def lose_registration(self, engine: Engine, node: str) -> None:
        self.execute("DELETE FROM nodes WHERE id = ?", node)

    def execute(self, statement: str, *values: object) -> None:
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        assert connection.execute(statement, values).rowcount == 1
        connection.close()


class TestSQLiteEngine(EngineContract):
    @pytest.fixture
    def make_engine(self, tmp_path: Path) -> EngineMaker:
        return SQLiteMaker(tmp_path / "celeriac é.db")
