"""Planned calls, and what is made of several of them."""

from . import builtins
from .chain import chain
from .chord import chord
from .group import group
from .maps import chunks, xmap, xstarmap
from .signature import Signature, maybe_signature, signature, subtask

__all__ = ["Signature", "builtins", "chain", "chord", "chunks", "group", "maybe_signature", "signature", "subtask", "xmap", "xstarmap"]
