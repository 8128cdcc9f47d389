"""Pictures of a workflow: as text, as a Mermaid flowchart, as an SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from msgspec import Struct

from ..core import states
from ..core.message import Record
from ..tasks.signature import Signature
from .chain import chain
from .chord import chord
from .group import group

__all__ = ["drawn"]

_MOST_MEMBERS = 12
"""Of a larger group, only the first of them are drawn, and how many more there are."""
_COLOURS = {
    states.SUCCESS: "#c8e6c9",
    states.FAILURE: "#ffcdd2",
    states.REVOKED: "#ffe0b2",
    states.STARTED: "#bbdefb",
    states.RETRY: "#fff9c4",
}
_WAITING = "#eeeeee"


def drawn(form: Signature[Any], records: Mapping[str, Record], kind: str = "text") -> str:
    """A normal form with the states of its tasks. `kind`: "text", "mermaid" or "svg"."""
    try:
        draw = _KINDS[kind]
    except KeyError:
        raise ValueError(f"There is no picture of the kind {kind!r}; there are {', '.join(_KINDS)}.") from None
    return draw(form, records)


# -- text ---------------------------------------------------------------------------------------------------------------------


def _text(form: Signature[Any], records: Mapping[str, Record]) -> str:
    lines: list[str] = []
    _write_text(form, records, lines, "", "")
    return "\n".join(lines)


def _write_text(form: Signature[Any], records: Mapping[str, Record], lines: list[str], first: str, rest: str) -> None:
    if isinstance(form, chain):
        parts, title = [(part, "") for part in form.tasks], "chain"
    elif isinstance(form, chord):
        parts, title = [*((part, "") for part in form.tasks), (form.body, "then ")], f"chord of {len(form.tasks)}"
    elif isinstance(form, group):
        parts, title = [(part, "") for part in form.tasks], f"group of {len(form.tasks)}"
    else:
        id = form.options["task_id"]
        lines.append(f"{first}{_state(id, records):<8} {form!r}  {id}"[:200])
        return
    lines.append(f"{first}{title}")
    body = parts.pop() if isinstance(form, chord) else None
    hidden = 0 if isinstance(form, chain) else max(0, len(parts) - _MOST_MEMBERS)
    if hidden:
        del parts[_MOST_MEMBERS:]
    shown: list[tuple[Any, str]] = [*parts, *([(f"… and {hidden} more", "")] if hidden else []), *([body] if body is not None else [])]
    for position, (part, word) in enumerate(shown):
        last = position == len(shown) - 1
        if isinstance(part, str):
            lines.append(f"{rest}├─ {part}")
        else:
            _write_text(part, records, lines, f"{rest}{'└─ ' if last else '├─ '}{word}", f"{rest}{'   ' if last else '│  '}")


# -- nodes and arrows ------------------------------------------------------------------------------------------------------------


class _Node(Struct):
    name: str
    label: str
    state: str
    column: int


class _Chart:
    """The tasks as nodes, in columns, and the arrows between them."""

    def __init__(self, form: Signature[Any], records: Mapping[str, Record]) -> None:
        self.nodes: list[_Node] = []
        self.arrows: list[tuple[_Node, _Node]] = []
        self._records = records
        self._numbers = count(1)
        self._add(form, [], 0)

    def _add(self, form: Signature[Any], before: list[_Node], column: int) -> tuple[list[_Node], int]:
        """Adds a form after these nodes. Returns the nodes that it ends in, and the column after it."""
        if isinstance(form, chain):
            for step in form.tasks:
                before, column = self._add(step, before, column)
            return before, column
        if isinstance(form, chord):
            ends, column = self._side_by_side(form.tasks, before, column)
            return self._add(form.body, ends, column)
        if isinstance(form, group):
            return self._side_by_side(form.tasks, before, column)
        id = form.options["task_id"]
        return self._node(form.task.rpartition(".")[2], _state(id, self._records), before, column)

    def _side_by_side(self, members: list[Signature[Any]], before: list[_Node], column: int) -> tuple[list[_Node], int]:
        ends: list[_Node] = []
        furthest = column
        for member in members[:_MOST_MEMBERS]:
            found, after = self._add(member, before, column)
            ends += found
            furthest = max(furthest, after)
        if len(members) > _MOST_MEMBERS:
            found, after = self._node(f"… {len(members) - _MOST_MEMBERS} more", "", before, column)
            ends += found
            furthest = max(furthest, after)
        return ends or before, furthest

    def _node(self, label: str, state: str, before: list[_Node], column: int) -> tuple[list[_Node], int]:
        node = _Node(f"n{next(self._numbers)}", label, state, column)
        self.nodes.append(node)
        self.arrows += [(other, node) for other in before]
        return [node], column + 1


def _mermaid(form: Signature[Any], records: Mapping[str, Record]) -> str:
    chart = _Chart(form, records)
    lines = ["flowchart LR"]
    for node in chart.nodes:
        state = f"<br/>{node.state}" if node.state else ""
        lines.append(f'    {node.name}["{_safe(node.label)}{state}"]')
        lines.append(f"    style {node.name} fill:{_COLOURS.get(node.state, _WAITING)}")
    lines += [f"    {one.name} --> {other.name}" for one, other in chart.arrows]
    return "\n".join(lines)


_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 130, 40, 50, 16, 10


def _svg(form: Signature[Any], records: Mapping[str, Record]) -> str:
    chart = _Chart(form, records)
    columns: dict[int, list[_Node]] = {}
    for node in chart.nodes:
        columns.setdefault(node.column, []).append(node)
    tallest = max((len(nodes) for nodes in columns.values()), default=1)
    height = 2 * _MARGIN + tallest * (_HEIGHT + _GAP_Y) - _GAP_Y
    width = 2 * _MARGIN + max(1, len(columns)) * (_WIDTH + _GAP_X) - _GAP_X
    at: dict[str, tuple[float, float]] = {}
    for column, nodes in columns.items():
        top = (height - len(nodes) * (_HEIGHT + _GAP_Y) + _GAP_Y) / 2
        for row, node in enumerate(nodes):
            at[node.name] = (_MARGIN + column * (_WIDTH + _GAP_X), top + row * (_HEIGHT + _GAP_Y))
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">']
    lines.append(
        '<defs><marker id="a" markerWidth="8" markerHeight="8" refX="7" refY="3" orient="auto"><path d="M0,0 L7,3 L0,6 z"/></marker></defs>'
    )
    for one, other in chart.arrows:
        (x1, y1), (x2, y2) = at[one.name], at[other.name]
        middle = f'x1="{x1 + _WIDTH:g}" y1="{y1 + _HEIGHT / 2:g}" x2="{x2 - 2:g}" y2="{y2 + _HEIGHT / 2:g}"'
        lines.append(f'<line {middle} stroke="black" marker-end="url(#a)"/>')
    for node in chart.nodes:
        x, y = at[node.name]
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" stroke="black" fill="{_COLOURS.get(node.state, _WAITING)}"/>'
        )
        lines.append(f'<text x="{x + _WIDTH / 2:g}" y="{y + 17:g}" text-anchor="middle">{_safe(node.label[:20])}</text>')
        lines.append(f'<text x="{x + _WIDTH / 2:g}" y="{y + 32:g}" text-anchor="middle" fill="#555">{node.state}</text>')
    return "\n".join([*lines, "</svg>"])


def _state(id: str, records: Mapping[str, Record]) -> str:
    record = records.get(id)
    return states.PENDING if record is None else record.status


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


_KINDS: dict[str, Callable[[Signature[Any], Mapping[str, Record]], str]] = {"text": _text, "mermaid": _mermaid, "svg": _svg}
