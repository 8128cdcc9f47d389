"""mypy and pyright see what a task takes and gives back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("typing_cases.py")
ROOT = CASES.parents[2]


def expected_errors() -> set[int]:
    return {number for number, line in enumerate(CASES.read_text().splitlines(), 1) if line.endswith("# error")}


def told_apart(found: dict[int, str]) -> str:
    wanted = expected_errors()
    missed = [f"line {number} should be an error" for number in sorted(wanted - found.keys())]
    surprising = [f"line {number}: {text}" for number, text in sorted(found.items()) if number not in wanted]
    return "\n".join(missed + surprising)


@pytest.mark.timeout(300)
def test_mypy() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--show-error-codes", "--warn-unreachable", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = {int(match[1]): match[2] for match in re.finditer(rf"{CASES.name}:(\d+): error: (.*)", done.stdout)}
    elsewhere = [line for line in done.stdout.splitlines() if ": error:" in line and CASES.name not in line]
    assert told_apart(found) == "", done.stdout
    assert elsewhere == []


@pytest.mark.timeout(300)
def test_pyright() -> None:
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        pytest.skip(f"pyright cannot run here: {done.stderr[-300:]}")
    found = {
        entry["range"]["start"]["line"] + 1: entry["message"] for entry in report["generalDiagnostics"] if entry["severity"] == "error"
    }
    assert told_apart(found) == ""
