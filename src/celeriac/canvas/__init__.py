"""Planned calls, and what is made of several of them."""

from typing import TYPE_CHECKING, Any

from . import builtins
from .chain import chain
from .chord import chord
from .group import group
from .maps import chunks, xmap, xstarmap
from .signature import Signature, maybe_signature, signature, subtask

if TYPE_CHECKING:
    from .feeding import Fed, feed
    from .flow import Flow, Progress, start

__all__ = [
    "Fed",
    "Flow",
    "Progress",
    "Signature",
    "builtins",
    "chain",
    "chord",
    "chunks",
    "feed",
    "group",
    "maybe_signature",
    "signature",
    "start",
    "subtask",
    "xmap",
    "xstarmap",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # A web process that only calls delay() looks after no workflows.
        if name in ("Flow", "Progress", "start"):
            from . import flow

            return getattr(flow, name)
        if name in ("Fed", "feed"):
            from . import feeding

            return getattr(feeding, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
