"""The table at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: which number, in which unit, and what is aimed at."""

    key: str
    title: str
    unit: str
    digits: int
    higher_is_better: bool = False
    at_least_ratio: float | None = None
    below: float | None = None


ROWS = [
    Row("drain_per_s", "no-op tasks, results stored, full queue", "/s", 0, True, at_least_ratio=20),
    Row("sustained_per_s", "  the same while a producer sends", "/s", 0, True, at_least_ratio=20),
    Row("sent_per_s", "  what that producer gets sent meanwhile", "/s", 0, True),
    Row("delay_us", ".delay() in a loop", "µs", 1, at_least_ratio=5),
    Row("call_p50_us", ".delay() to an idle worker, p50", "µs", 1),
    Row("start_p50_ms", "call → start, idle worker, p50", "ms", 3, below=0.5),
    Row("start_p99_ms", "call → start, idle worker, p99", "ms", 3),
    Row("result_p50_ms", "call → result in hand, p50", "ms", 3, below=0.6),
    Row("result_p99_ms", "call → result in hand, p99", "ms", 3),
    Row("at_once_start_p50_ms", "call → start, one call right after another, p50", "ms", 3, below=0.5),
    Row("at_once_p50_ms", "call → result in hand, the same, p50", "ms", 3, below=0.6),
    Row("fairness_idle_ms", "worst start behind a 1 s task, idle worker", "ms", 1, below=100),
    Row("fairness_loaded_ms", "worst start behind a 1 s task, full queue", "ms", 1, below=100),
    Row("idle_cpu_s_per_min", "CPU of an idle worker", "s/min", 2, below=0.5),
    Row("pss_mb", "memory of a worker, 2 processes (PSS)", "MB", 1, below=100),
    Row("eta_mb", "growth for 100,000 tasks due in 1 h (PSS)", "MB", 1, below=5),
    Row("eta_call_us", "publishing one of them, worker beside it", "µs", 1),
    Row("eta_start_p50_ms", "call → start, idle worker, beside them, p50", "ms", 3),
    Row("eta_drain_per_s", "no-op tasks, full queue, beside them", "/s", 0, True),
]
WIDTHS = (49, 14, 14, 9, 12, 9, 16)


def table(results: dict[str, Any]) -> str:
    """Our value, Celery's, the ratio (how many times better ours is), the target and whether it is met, and the raw limit where there is one."""
    medians = results["medians"]
    ours, theirs, raw = (medians.get(name, {}) for name in ("celeriac", "celery", "raw"))
    lines = [
        _line("", "Celeriac", "Celery 5.7", "ratio", "target", "", "raw sqlite3"),
        _line("", "on SQLite", "on Redis", "", "", "", "(ours of it)"),
    ]
    lines.append("─" * sum(WIDTHS))
    for row in ROWS:
        our, their, limit = (numbers.get(row.key) for numbers in (ours, theirs, raw))
        if our is None and their is None:
            continue
        ratio = _better(row, our, their)
        lines.append(
            _line(
                row.title,
                _value(row, our),
                _value(row, their),
                f"{ratio:.1f}×" if ratio else "",
                _target(row),
                _met(row, our, ratio),
                _limit(row, our, limit),
            )
        )
    loads = " → ".join(f"{load:.2f}" for load in results["load_average"])
    lines.append("─" * sum(WIDTHS))
    lines.append(
        f"Medians of {results['rounds']} round(s) in {results['seconds']} s. {results['machine']}. Load average at the start and after each round: {loads}."
    )
    lines.append(
        "A ratio is how many times better Celeriac is. One measurement in parallel with other work on the machine says little: repeat it when the load is low."
    )
    return "\n".join(["", *lines])


def _line(*cells: str) -> str:
    return (cells[0].ljust(WIDTHS[0]) + "".join(cell.rjust(width) for cell, width in zip(cells[1:], WIDTHS[1:], strict=True))).rstrip()


def _value(row: Row, value: float | None) -> str:
    return "–" if value is None else f"{value:,.{row.digits}f} {row.unit}"


def _better(row: Row, our: float | None, their: float | None) -> float | None:
    if our is None or their is None or our <= 0 or their <= 0:
        return None
    return our / their if row.higher_is_better else their / our


def _target(row: Row) -> str:
    if row.at_least_ratio is not None:
        return f"≥ {row.at_least_ratio:g}×"
    return "" if row.below is None else f"< {row.below:g} {row.unit}"


def _met(row: Row, our: float | None, ratio: float | None) -> str:
    if row.at_least_ratio is not None:
        return "" if ratio is None else "met" if ratio >= row.at_least_ratio else "NOT MET"
    if row.below is not None and our is not None:
        return "met" if our < row.below else "NOT MET"
    return ""


def _limit(row: Row, our: float | None, limit: float | None) -> str:
    if limit is None:
        return ""
    share = "" if our is None else f" ({(our / limit if row.higher_is_better else limit / our):.0%})"
    return f"{limit:,.{row.digits}f}{share}"
