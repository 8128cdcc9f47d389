"""`signature()`: a planned call, from whatever names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..tasks.signature import Signature, signature_of

__all__ = ["Signature", "maybe_signature", "signature", "subtask"]


def signature(
    varies: str | Mapping[str, Any] | Any, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Signature[Any]:
    """A signature of a task, of a task's name, or of a dict that came out of a message (or is one already)."""
    app = options.pop("app", None)
    if isinstance(varies, Mapping):
        if isinstance(varies, Signature):
            return varies.clone()
        return signature_of(varies, app=app)
    return Signature(varies, args, kwargs, app=app, **options)


subtask = signature


def maybe_signature(d: Any, app: Any = None, clone: bool = False) -> Any:
    """A signature for a dict; everything else, None too, stays what it is."""
    if not isinstance(d, Mapping):
        return d
    found = signature_of(d, app=app)
    if app is not None:
        found._app = app
    return found.clone() if clone else found
