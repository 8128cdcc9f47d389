"""Planned calls, and what is made of several of them."""

from . import builtins
from .chain import chain
from .chord import chord
from .feed import Fed, feed
from .group import group
from .maps import chunks, xmap, xstarmap
from .signature import Signature, maybe_signature, signature, subtask

__all__ = [
    "Fed",
    "Signature",
    "builtins",
    "chain",
    "chord",
    "chunks",
    "feed",
    "group",
    "maybe_signature",
    "signature",
    "subtask",
    "xmap",
    "xstarmap",
]
