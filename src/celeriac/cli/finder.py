"""Which app `-A` means, as Celery finds it, and a helpful word when there is none.

`proj:app` and `proj.app` name it. A module is searched: its `app`, its `celery` or `celeriac`; for a package, the same in its module
`celery` or `celeriac`; else the first app among the module's names. `proj/celery.py` is the same as `proj.celery`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from ..core.errors import CeleriacError
from . import exits

if TYPE_CHECKING:
    from ..app import Celeriac

CONFIG_MODULE = "CELERIAC_CONFIG_MODULE"
"""`--config`, in the environment: so that processes which find the app for themselves configure it alike."""

_NAMES = ("app", "celery", "celeriac")
_SUBMODULES = ("celery", "celeriac")


def find_app(path: str) -> Celeriac:
    """The app that `-A path` means; CommandFailed says why there is none: the user's own traceback, or what was looked for."""
    return _configured(_found(path))


def _found(path: str) -> Celeriac:
    from ..app import Celeriac

    wanted = _dotted(path)
    module_name, colon, attribute = wanted.partition(":")
    if not module_name:
        raise exits.CommandFailed(f"-A {path!r} names no module. Give `-A proj`, `-A proj.tasks` or `-A proj.tasks:app`.", exits.WRONG_CALL)
    if colon:
        return _checked(_attribute(_imported(module_name, path), attribute or "app", path), path)
    looked_for: list[str] = []
    found = _resolved(module_name, path, looked_for)
    if isinstance(found, Celeriac):
        return found
    if not isinstance(found, ModuleType):
        return _checked(found, path)
    app = _search(found, path, looked_for)
    if app is None:
        raise exits.CommandFailed(_nothing_in(found, path, looked_for), exits.WRONG_CALL)
    return app


def load_tasks(app: Celeriac, also: Sequence[str], path: str) -> None:
    """Imports all modules that define tasks of the app."""
    try:
        app.import_modules(also)
        app.finalize()
    except CeleriacError:
        raise
    except (Exception, SystemExit) as problem:
        raise exits.CommandFailed(f"-A {path}: importing the app's tasks failed:\n\n{_trimmed(problem)}", exits.WRONG_CALL) from None


def bare_app() -> Celeriac:
    """An app without tasks, for commands that only speak with the engine."""
    from ..app import Celeriac

    return _configured(Celeriac("celeriac"))


def no_app_given(bare_allowed: bool) -> str:
    """What to do without `-A`."""
    lines = ["No app: say where it is with -A, before or after the command, or in the environment as CELERIAC_APP or CELERY_APP."]
    candidates = list(_candidates(Path.cwd()))
    if candidates:
        lines.append("Here, these look like it:")
        lines.extend(f"    celeriac -A {name} …" for name in candidates[:5])
    else:
        lines.append(
            "For an `app = Celeriac(…)` in proj/celery.py that is `celeriac -A proj …`, in the folder that contains proj (or with --workdir)."
        )
    if bare_allowed:
        lines.append("To only look at an engine, -b URL is enough: `celeriac -b sqlite:///celeriac.db status`.")
    return "\n".join(lines)


def _configured(app: Celeriac) -> Celeriac:
    module = os.environ.get(CONFIG_MODULE)
    if module:
        app.config_from_object(module)
    return app


# -- steps ---------------------------------------------------------------------------------------------------------


def _dotted(path: str) -> str:
    """`proj/celery.py` → `proj.celery`; anything else is as it was."""
    file, colon, attribute = path.partition(":")
    if file.endswith(".py") or "/" in file or os.sep in file:
        file = file.removesuffix(".py").replace(os.sep, "/").removeprefix("./").strip("/").replace("/", ".")
    return f"{file}{colon}{attribute}"


def _resolved(name: str, path: str, looked_for: list[str]) -> Any:
    """The module `name`, or, when its last part is no module, the attribute of the module before it."""
    try:
        return _import(name)
    except ModuleNotFoundError as problem:
        parent, dot, last = name.rpartition(".")
        if not dot or not _is_missing(problem, name):
            raise _import_failed(problem, name, path) from None
        looked_for.append(f"module {name}")
        return _attribute(_imported(parent, path), last, path)
    except BaseException as problem:
        raise _import_failed(problem, name, path) from None


def _search(module: ModuleType, path: str, looked_for: list[str]) -> Celeriac | None:
    from ..app import Celeriac

    for name in _NAMES:
        looked_for.append(f"{module.__name__}.{name}")
        found = getattr(module, name, None)
        if isinstance(found, Celeriac):
            return found
    if hasattr(module, "__path__"):
        for last in _SUBMODULES:
            name = f"{module.__name__}.{last}"
            try:
                submodule = _import(name)
            except ModuleNotFoundError as problem:
                if not _is_missing(problem, name):
                    raise _import_failed(problem, name, path) from None
                looked_for.append(f"module {name}")
            except BaseException as problem:
                raise _import_failed(problem, name, path) from None
            else:
                app = _search(submodule, path, looked_for)
                if app is not None:
                    return app
    looked_for.append(f"any app among the names of {module.__name__}")
    return next((value for value in vars(module).values() if isinstance(value, Celeriac)), None)


def _import(name: str) -> ModuleType:
    return import_module(name)


def _imported(name: str, path: str) -> ModuleType:
    try:
        return _import(name)
    except BaseException as problem:
        raise _import_failed(problem, name, path) from None


def _attribute(module: ModuleType, dotted: str, path: str) -> Any:
    found: Any = module
    for part in dotted.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise exits.CommandFailed(_no_attribute(module, dotted, path), exits.WRONG_CALL) from None
    return found


def _checked(found: Any, path: str) -> Celeriac:
    from ..app import Celeriac

    if isinstance(found, Celeriac):
        return found
    if isinstance(found, ModuleType):
        looked_for: list[str] = []
        app = _search(found, path, looked_for)
        if app is not None:
            return app
        raise exits.CommandFailed(_nothing_in(found, path, looked_for), exits.WRONG_CALL)
    kind = type(found)
    text = f"-A {path}: this is a {kind.__module__}.{kind.__qualname__}, not a Celeriac app."
    if kind.__module__.partition(".")[0] == "celery":
        text += " In that module, write `from celeriac import Celeriac` and `app = Celeriac(…)`."
    raise exits.CommandFailed(text, exits.WRONG_CALL)


# -- words for what went wrong ----------------------------------------------------------------------------------


def _is_missing(problem: ModuleNotFoundError, name: str) -> bool:
    """True when `name` itself, or a package on the way to it, is what is missing; not something that it imports."""
    missing = problem.name or ""
    return name == missing or name.startswith(f"{missing}.") or "is not a package" in str(problem)


def _import_failed(problem: BaseException, name: str, path: str) -> BaseException:
    if isinstance(problem, KeyboardInterrupt):
        return problem
    if isinstance(problem, ModuleNotFoundError) and problem.name is not None and _is_missing(problem, name) and not _users_frames(problem):
        text = (
            f"-A {path}: there is no module named '{problem.name}'. Looked in {os.getcwd()} and the installed packages.\n"
            "Run this in the folder that contains it, or name that folder with --workdir."
        )
        candidates = list(_candidates(Path.cwd()))
        if candidates:
            text += "\nHere, these look like an app: " + ", ".join(f"-A {name}" for name in candidates[:5])
        return exits.CommandFailed(text, exits.WRONG_CALL)
    return exits.CommandFailed(f"-A {path}: importing '{name}' failed:\n\n{_trimmed(problem)}", exits.WRONG_CALL)


def _no_attribute(module: ModuleType, attribute: str, path: str) -> str:
    from ..app import Celeriac

    apps = [name for name, value in vars(module).items() if isinstance(value, Celeriac)]
    where = f" ({module.__file__})" if getattr(module, "__file__", None) else ""
    text = f"-A {path}: module '{module.__name__}'{where} has no '{attribute}'."
    if apps:
        return f"{text} It has an app named '{apps[0]}': -A {module.__name__}:{apps[0]}"
    return f"{text} It has no app at all; there should be an `app = Celeriac(…)`."


def _nothing_in(module: ModuleType, path: str, looked_for: list[str]) -> str:
    where = f" ({module.__file__})" if getattr(module, "__file__", None) else ""
    lines = [f"-A {path}: module '{module.__name__}'{where} was imported, but there is no Celeriac app in it. Looked for:"]
    lines.extend(f"    {what}" for what in looked_for)
    foreign = [name for name, value in vars(module).items() if type(value).__module__.partition(".")[0] == "celery"]
    if foreign:
        lines.append(f"'{foreign[0]}' is an object of Celery; write `from celeriac import Celeriac` instead.")
    else:
        lines.append("Write `app = Celeriac('proj')` there, or name where it is: -A module:name.")
    return "\n".join(lines)


def _users_frames(problem: BaseException) -> list[TracebackType]:
    """The parts of a traceback that are neither ours nor the import system's."""
    ours = str(Path(__file__).parent.parent) + os.sep
    frames = []
    step = problem.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not (file.startswith((ours, "<frozen importlib")) or file == import_module.__code__.co_filename):
            frames.append(step)
        step = step.tb_next
    return frames


def _trimmed(problem: BaseException) -> str:
    """The traceback from the user's first line on."""
    frames = _users_frames(problem)
    if not frames and not isinstance(problem, SyntaxError):
        return "".join(traceback.format_exception(problem)).rstrip()
    report = traceback.TracebackException.from_exception(problem)
    kept = {(step.tb_frame.f_code.co_filename, step.tb_lineno) for step in frames}
    part: traceback.TracebackException | None = report
    while part is not None:
        if part is report:
            part.stack = traceback.StackSummary.from_list([frame for frame in part.stack if (frame.filename, frame.lineno) in kept])
        part = part.__cause__ or part.__context__
    return "".join(report.format()).rstrip()


def _candidates(folder: Path) -> Iterator[str]:
    """Modules here that seem to make an app, as `-A` would name them."""
    patterns = ("*.py", "*/celery.py", "*/celeriac.py", "*/__init__.py", "*/app.py", "*/tasks.py")
    seen: set[str] = set()
    for pattern in patterns:
        for file in sorted(folder.glob(pattern))[:200]:
            try:
                makes_app = "Celeriac(" in file.read_text(encoding="utf-8", errors="replace")[:100_000]
            except OSError:
                continue
            parts = file.relative_to(folder).with_suffix("").parts
            if not makes_app or any(part.startswith(".") or not part.isidentifier() for part in parts):
                continue
            name = parts[0] if parts[-1] in (*_SUBMODULES, "__init__") and len(parts) > 1 else ".".join(parts)
            if name not in seen:
                seen.add(name)
                yield name
