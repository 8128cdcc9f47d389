"""The contract suite: an engine that passes it is a correct engine.

    from celeriac.testing.contract import EngineContract

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def make_engine(self, tmp_path):
            return MyMaker(tmp_path)

`make_engine` gives an `EngineMaker` over an empty storage: each call of it opens another engine over the same storage, as another process would.
What engines differ in is read from their `Capabilities`; a test of something that an engine does not have is skipped.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            "harness",
            "faults",
            "inspection",
            "joins",
            "leases",
            "mailbox",
            "ordering",
            "processes",
            "publishing",
            "results",
            "revoking",
            "schedules",
            "settling",
            "steps",
            "waiting",
        )
    )
)

from .faults import Faults  # noqa: E402
from .harness import EngineMaker  # noqa: E402
from .inspection import Inspection  # noqa: E402
from .joins import JoinFaults, Joins  # noqa: E402
from .leases import Leases  # noqa: E402
from .mailbox import Mailboxes  # noqa: E402
from .ordering import Ordering  # noqa: E402
from .processes import Processes  # noqa: E402
from .publishing import Publishing  # noqa: E402
from .results import Results  # noqa: E402
from .revoking import Revoking  # noqa: E402
from .schedules import Scheduling  # noqa: E402
from .settling import Settling  # noqa: E402
from .steps import DurableSteps  # noqa: E402
from .waiting import WaitingForWork  # noqa: E402


class EngineContract(
    Publishing,
    Ordering,
    Leases,
    Settling,
    Revoking,
    Joins,
    DurableSteps,
    Scheduling,
    Inspection,
    WaitingForWork,
    Mailboxes,
    Results,
    Faults,
    JoinFaults,
    Processes,
):
    """All of it."""


__all__ = ["EngineContract", "EngineMaker"]
