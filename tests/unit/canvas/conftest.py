from __future__ import annotations

from collections.abc import Iterator

import pytest

from celeriac import Celeriac
from celeriac.tasks import registry


@pytest.fixture
def app() -> Iterator[Celeriac]:
    before = registry.current.app
    app = Celeriac("proj", broker="memory://")
    yield app
    app.close()
    registry.set_current_app(None)
    registry.set_default_app(before)
