"""`-A`: every way in which Celery finds an app, and a word of help when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from celeriac.cli.exits import CommandFailed
from celeriac.cli.finder import find_app, no_app_given
from celeriac.cli.session import Session

APP = "from celeriac import Celeriac\n{name} = Celeriac({label!r})\n"


@pytest.fixture(autouse=True)
def importable(folder: Path) -> None:
    Session().enter_workdir()


def write(folder: Path, file: str, text: str) -> None:
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent != folder and not (target.parent / "__init__.py").exists():
        (target.parent / "__init__.py").touch()
    target.write_text(text)


@pytest.mark.parametrize(
    ("file", "name", "path"),
    [
        ("found1.py", "app", "found1"),
        ("found2.py", "app", "found2:app"),
        ("found3.py", "queue", "found3:queue"),
        ("found4.py", "queue", "found4.queue"),
        ("found5.py", "celery", "found5"),
        ("found6.py", "queue", "found6"),
        ("found7/__init__.py", "app", "found7"),
        ("found8/celery.py", "app", "found8"),
        ("found9/celery.py", "celery", "found9"),
        ("found10/celery.py", "queue", "found10"),
        ("found11/celery.py", "app", "found11.celery"),
        ("found12/celery.py", "app", "found12.celery:app"),
        ("found13/celery.py", "app", "found13/celery.py"),
        ("found14/celeriac.py", "app", "found14"),
        ("found15.py", "app", "found15.py"),
        ("found16.py", "app", "found16.py:app"),
        ("found17/celery.py", "app", "found17:celery"),
    ],
)
def test_found(folder: Path, file: str, name: str, path: str) -> None:
    write(folder, file, APP.format(name=name, label=path))
    if path.endswith(":celery"):
        write(folder, "found17/__init__.py", "from . import celery\n")
    assert find_app(path).main == path


def test_package_that_exports_its_celery_module(folder: Path) -> None:
    """`from .celery import app as celery_app`, as Django projects do."""
    write(folder, "exports/celery.py", APP.format(name="app", label="exports"))
    write(folder, "exports/__init__.py", "from .celery import app as celery_app\n")
    assert find_app("exports").main == "exports"


def failure(path: str) -> str:
    with pytest.raises(CommandFailed) as raised:
        find_app(path)
    assert raised.value.exit_code == 2
    return raised.value.message


def test_no_such_module_says_where_it_looked_and_what_there_is(folder: Path) -> None:
    write(folder, "shop/celery.py", APP.format(name="app", label="shop"))
    text = failure("shopp")
    assert "there is no module named 'shopp'" in text
    assert str(folder) in text and "--workdir" in text
    assert "-A shop" in text


def test_an_import_error_in_the_users_module_is_shown_as_it_is(folder: Path) -> None:
    write(folder, "broken1.py", "import no_such_package_at_all\n")
    text = failure("broken1")
    assert "ModuleNotFoundError: No module named 'no_such_package_at_all'" in text
    assert 'broken1.py", line 1' in text
    assert "finder.py" not in text and "importlib" not in text


@pytest.mark.parametrize("file", ["broken2/celery.py", "broken2/__init__.py"])
def test_an_error_deeper_in_the_users_package(folder: Path, file: str) -> None:
    write(folder, "broken2/__init__.py", "")
    write(folder, file, "def boom():\n    raise RuntimeError('the real reason')\nboom()\n")
    text = failure("broken2")
    assert "RuntimeError: the real reason" in text
    assert "in boom" in text and "finder.py" not in text


def test_a_syntax_error_shows_the_line(folder: Path) -> None:
    write(folder, "broken3.py", "def (:\n")
    text = failure("broken3")
    assert "SyntaxError" in text and 'broken3.py", line 1' in text


def test_a_module_that_exits_is_an_error_too(folder: Path) -> None:
    write(folder, "broken4.py", "import sys\nsys.exit(3)\n")
    assert "SystemExit: 3" in failure("broken4")


def test_a_module_without_an_app_lists_what_was_looked_for(folder: Path) -> None:
    write(folder, "empty/__init__.py", "x = 1\n")
    text = failure("empty")
    for looked_for in ("empty.app", "empty.celery", "module empty.celery", "any app among the names of empty"):
        assert looked_for in text
    assert "app = Celeriac(" in text


def test_a_missing_name_is_met_with_the_app_there_is(folder: Path) -> None:
    write(folder, "named.py", APP.format(name="queue", label="named"))
    assert "-A named:queue" in failure("named:app")


def test_something_that_is_no_app(folder: Path) -> None:
    write(folder, "thing.py", "app = 3\n")
    assert "builtins.int, not a Celeriac app" in failure("thing:app")


def test_nothing_given_names_what_looks_like_an_app(folder: Path) -> None:
    write(folder, "shop/celery.py", APP.format(name="app", label="shop"))
    write(folder, "tasks.py", APP.format(name="app", label="tasks"))
    text = no_app_given(bare_allowed=True)
    assert "celeriac -A shop …" in text and "celeriac -A tasks …" in text and "-b" in text
