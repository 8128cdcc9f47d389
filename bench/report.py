"""The tables at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .engines import ENGINES, Target


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: which number, and how it is written."""

    key: str
    title: str
    digits: int
    higher_is_better: bool = False
    bare: bool = False
    """Neither more nor less of it is better by itself: no ratio."""


ROWS = [
    Row("drain_per_s", "full queue, no-op tasks, tasks/s", 0, True),
    Row("drain_worker_us", "  CPU of the worker for one, µs", 1),
    Row("drain_server_us", "  CPU of the server for one, µs", 1),
    Row("sustained_per_s", "producers and worker together, tasks/s", 0, True),
    Row("sustained_start_p50_ms", "  call → start, p50, ms", 2),
    Row("sustained_start_p99_ms", "  call → start, p99, ms", 2),
    Row("sustained_worker_cores", "  cores busy in the worker", 2, bare=True),
    Row("sustained_server_cores", "  cores busy in the server", 2, bare=True),
    Row("sustained_dead_tuples", "  most dead tuples", 0, bare=True),
    Row("sustained_disk_mb", "  most space of all tables, MB", 0, bare=True),
    Row("sustained_seconds", "  measured for so many seconds", 0, bare=True),
    Row("delay_us", ".delay() in a loop, µs", 1),
    Row("at_once_start_p50_ms", "back to back: call → start, p50, ms", 3),
    Row("at_once_start_p99_ms", "  p99", 3),
    Row("at_once_p50_ms", "  call → result in hand, p50, ms", 3),
    Row("at_once_p99_ms", "  p99", 3),
    Row("start_p50_ms", "3–20 ms apart: call → start, p50, ms", 3),
    Row("start_p99_ms", "  p99", 3),
    Row("result_p50_ms", "  call → result in hand, p50, ms", 3),
    Row("result_p99_ms", "  p99", 3),
    Row("call_p50_us", "  .delay() alone, p50, µs", 1),
    Row("io_per_s", "10 ms coroutines, 500 in a process, tasks/s", 0, True),
    Row("io_share_of_ideal", "  share of the ideal rate, %", 0, True),
    Row("io_cores", "  of one core busy, %", 0, bare=True),
    Row("io_worker_us", "  CPU for one, µs", 1),
    Row("fairness_idle_ms", "worst start behind a 1 s task, idle worker, ms", 1),
    Row("fairness_loaded_ms", "worst start behind a 1 s task, full queue, ms", 1),
    Row("idle_cpu_s_per_min", "CPU of an idle worker, s/min", 2),
    Row("pss_mb", "memory of a worker, 2 processes (PSS), MB", 1),
    Row("eta_mb", "growth for 100,000 tasks due in 1 h, MB", 1),
    Row("eta_call_us", "  publishing one of them, µs", 1),
    Row("eta_start_p50_ms", "  call → start beside them, p50, ms", 3),
    Row("eta_drain_per_s", "  full queue beside them, tasks/s", 0, True),
]
_ROWS = {row.key: row for row in ROWS}
FIRST, COLUMN = 47, 13


def report(results: dict[str, Any]) -> str:
    """One table an engine, each with its targets."""
    parts = [_engine(name, found) for name, found in results["engines"].items()]
    loads = " → ".join(f"{load:.2f}" for load in results["load_average"])
    parts.append(
        f"Medians of {results['rounds']} round(s), {results['seconds']} s in all. {results['machine']}.\n"
        f"Load average at the start and after each round: {loads}. A machine that does other things meanwhile distorts all sides, and not equally."
    )
    return "\n\n".join(parts)


def _engine(name: str, found: dict[str, Any]) -> str:
    sides, medians, titles = found["sides"], found["medians"], found["titles"]
    raw = medians.get("raw", {})
    lines = [
        f"{ENGINES[name].title}: two worker processes, results stored",
        _line("", [titles[side].split(" ")[0] for side in sides] + (["driver alone", "of it"] if raw else [])),
        _line("", [titles[side].partition(" ")[2] for side in sides]),
        "─" * (FIRST + COLUMN * (len(sides) + (2 if raw else 0))),
    ]
    for row in ROWS:
        values = [medians.get(side, {}).get(row.key) for side in sides]
        if all(value is None for value in values):
            continue
        cells = [_number(row, value) for value in values]
        if row.key in raw:
            share = _better(row, values[0], raw[row.key])
            cells += [_number(row, raw[row.key]), f"{share:.0%}" if share else ""]
        lines.append(_line(row.title, cells))
    lines += [f"  on {place}" for place in found["places"]]
    lines += [f"  {line}" for line in found["notes"]]
    targets = [line for target in ENGINES[name].targets if (line := _target(target, sides, medians)) is not None]
    return "\n".join(["", *lines, *(["", "  aimed at", *targets] if targets else [])])


def _line(title: str, cells: list[str]) -> str:
    return (title.ljust(FIRST) + "".join(cell.rjust(COLUMN) for cell in cells)).rstrip()


def _number(row: Row, value: float | None) -> str:
    return "–" if value is None else f"{value:,.{row.digits}f}"


def _better(row: Row, our: float | None, their: float | None) -> float | None:
    """How many times better ours is."""
    if our is None or their is None or our <= 0 or their <= 0:
        return None
    return our / their if row.higher_is_better else their / our


def _target(target: Target, sides: list[str], medians: dict[str, Any]) -> str | None:
    """What was aimed at, what was reached, and whether that is enough. None when it was not measured."""
    row = _ROWS[target.key]
    our = medians.get("celeriac", {}).get(target.key)
    if our is None:
        return None
    title = row.title.strip()
    if title == "p99":
        title = ROWS[ROWS.index(row) - 1].title.strip().replace("p50", "p99")
    if target.below:
        return _aim(title, f"below {target.below:g}", _number(row, our), our < target.below)
    if target.at_least:
        other = medians["celeriac"].get(target.or_key)
        reached = _number(row, our) + (
            f", or {_number(_ROWS[target.or_key], other)} {_ROWS[target.or_key].title.strip()}" if other is not None else ""
        )
        return _aim(title, f"at least {target.at_least:g}", reached, max(our, other or 0.0) >= target.at_least)
    against = {side: medians.get(side, {}).get(target.key) for side in [*sides, "raw"] if side not in ("celeriac", target.but)}
    if target.than:
        against = {target.than: against.get(target.than)}
    else:
        against.pop("raw", None)
    ratios = {side: ratio for side, their in against.items() if (ratio := _better(row, our, their)) is not None}
    if not ratios:
        return None
    side, ratio = min(ratios.items(), key=lambda item: item[1])
    whom = {"raw": "the driver alone"}.get(side, side) if target.than else f"the best of the others ({side})"
    if target.times < 1:
        return _aim(title, f"within {1 / target.times:.3g}× of {whom}", f"{1 / ratio:.2f}×", ratio >= target.times)
    return _aim(title, f"{target.times:g}× {whom}", f"{ratio:.1f}×", ratio >= target.times)


def _aim(title: str, aim: str, reached: str, met: bool) -> str:
    return f"  {'met    ' if met else 'NOT MET'}  {title}: {aim}; it is {reached}"
