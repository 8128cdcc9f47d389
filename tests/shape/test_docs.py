"""What the README and the docs show works: their Python runs, with the worker that they start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_DJANGO = "django.md"
"""Its Python runs in a project: tests/in_django/test_page.py."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "engines").glob("*.md"))]
ALL_PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.py)\n")
_WORKER = re.compile(r"^celeriac -A (\w+) worker\b", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)\)")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text() and page.name != OF_DJANGO], ids=lambda page: page.name
)
def test_python_of_page_runs(page: Path, tmp_path: Path) -> None:
    """Blocks that begin with `# name.py` are files; the others are one program, run beside the worker that the page starts."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    program = []
    for language, text in blocks:
        if language != "python":
            continue
        if match := _FILE.match(text):
            (tmp_path / match[1]).write_text(text, encoding="utf-8")
        else:
            program.append(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(tmp_path)])
    worker = None
    started = [match[1] for language, text in blocks if language == "sh" for match in _WORKER.finditer(text)]
    if started:
        command = [sys.executable, "-m", "celeriac", "-A", started[0], "worker", "--concurrency=1"]
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(program)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
    finally:
        if worker is not None:
            worker.send_signal(signal.SIGTERM)
            try:
                worker.wait(20)
            finally:
                worker.kill()
    log_text = (tmp_path / "worker.log").read_text() if worker is not None else ""
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nThe worker said:\n{log_text}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_page_lead_somewhere(page: Path) -> None:
    missing = [
        target for target in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target and not (page.parent / target).exists()
    ]
    assert not missing


def test_first_screen_of_readme_names_the_two_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40])
    assert "make demo" in first_screen and "make test" in first_screen
    assert "pip install celeriac" in first_screen


def test_decisions_are_listed_and_numbered_without_gaps() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    assert [page.name for page in pages if page.name not in listed] == []


def test_settings_page_is_current() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "settings_page.py"), "--check"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_settings_page_names_every_setting() -> None:
    from celeriac.core.settings import SETTINGS

    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert [name for name in SETTINGS if f"| `{name}` |" not in page] == []
