"""Lines that are drawn again and again on a terminal, and printed as they change elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from types import TracebackType

Line = tuple[str, str, float, str]
"""Name, state, share done, words."""

_COLOURS = {"SUCCESS": "32", "FAILURE": "31", "REVOKED": "35", "RETRY": "33", "PROGRESS": "36", "STARTED": "36"}


class Screen:
    """`show` the lines as they are now; `say` something that stays above them."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._started = time.monotonic()
        self._drawn: list[Line] = []
        self._told: dict[str, tuple[str, int, str]] = {}

    def __enter__(self) -> Screen:
        if self._live:
            sys.stdout.write("\x1b[?25l")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            sys.stdout.write("\x1b[?25h")
        print(flush=True)

    def show(self, lines: Sequence[Line]) -> None:
        if self._live:
            self._draw(lines)
        else:
            self._tell(lines)

    def say(self, text: str) -> None:
        text = f"{time.monotonic() - self._started:6.1f} s  {text}"
        if not self._live:
            print(text, flush=True)
            return
        lines = self._drawn
        self._wipe()
        print(text)
        self._draw(lines)

    def _draw(self, lines: Sequence[Line]) -> None:
        width = shutil.get_terminal_size().columns
        self._wipe()
        for name, state, share, words in lines:
            bar = "█" * round(20 * share) + "·" * (20 - round(20 * share))
            text = f"{name:<24}{bar}  {state:<9} {words}"[: width - 1]
            sys.stdout.write(text.replace(state, f"\x1b[{_COLOURS.get(state, '2')}m{state}\x1b[0m", 1) + "\n")
        sys.stdout.flush()
        self._drawn = list(lines)

    def _wipe(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{len(self._drawn)}F\x1b[0J")
        self._drawn = []

    def _tell(self, lines: Sequence[Line]) -> None:
        for name, state, share, words in lines:
            quarter = int(share * 4)
            told = (state, quarter, "" if 0 < share < 1 else words)
            if self._told.get(name) != told:
                self._told[name] = told
                print(f"{time.monotonic() - self._started:6.1f} s  {name:<24}{share:>5.0%}  {state:<9} {words}".rstrip(), flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them; the last but one may be as long as it likes."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    return "\n".join([lines[0], "─" * max(len(line) for line in lines), *lines[1:]])
