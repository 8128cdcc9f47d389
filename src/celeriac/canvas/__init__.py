"""Planned calls, and what is made of several of them."""

from .signature import Signature, maybe_signature, signature, subtask

__all__ = ["Signature", "maybe_signature", "signature", "subtask"]
