"""For tests: of programs that send tasks, and of engines.

FakeClock       a clock whose hands the test turns
FaultyEngine    an engine that fails at the operation you choose
contract        the suite that says what a correct engine is (needs pytest)
"""

from __future__ import annotations

from .clock import FakeClock
from .faulty import FaultyEngine

__all__ = ["FakeClock", "FaultyEngine"]
