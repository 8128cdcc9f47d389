"""States and their order."""

from __future__ import annotations

from celeriac.core import states
from celeriac.core.states import state


def test_are_in_celerys_order() -> None:
    ranked = ["SUCCESS", "FAILURE", "CUSTOM", "REVOKED", "STARTED", "RECEIVED", "REJECTED", "RETRY", "PENDING"]
    assert sorted(ranked, key=states.precedence) == ranked
    for earlier, later in zip(ranked, ranked[1:], strict=False):
        assert state(earlier) > state(later) and state(later) < state(earlier) and state(earlier) >= state(earlier) <= state(earlier)


def test_sets_do_not_overlap() -> None:
    assert not states.READY_STATES & states.UNREADY_STATES
    assert states.PROPAGATE_STATES <= states.READY_STATES and states.PROPAGATE_STATES <= states.EXCEPTION_STATES
