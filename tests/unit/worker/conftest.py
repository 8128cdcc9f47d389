from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from .lab import Lab, MakeLab, open_lab


@pytest.fixture
def make_lab() -> Iterator[MakeLab]:
    with ExitStack() as stack:

        def make(**settings: Any) -> Lab:
            return stack.enter_context(open_lab(**settings))

        yield make


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab()
