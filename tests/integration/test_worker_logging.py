"""What a real worker logs."""

from __future__ import annotations

import re

from tests.support.fixtures import MakeProject
from tests.support.workers import Project, until

TASKS = """
import logging, sys
from proj import app
from celeriac.utils.log import get_task_logger

logger = get_task_logger(__name__)

@app.task
def talk(word):
    logger.info("logged %s", word)
    print("printed", word)
    print("complained", word, file=sys.stderr)
    logging.getLogger("shop").warning("elsewhere %s", word)
"""

OWN_LOGGING = """
import logging, logging.config
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"own": {"format": "OWN %(levelname)s %(task_name)s %(task_id)s %(processName)s %(message)s"}},
    "handlers": {"own": {"class": "logging.FileHandler", "filename": "own.log", "formatter": "own"}},
    "root": {"handlers": ["own"], "level": "INFO"},
})
"""


def talk(project: Project, word: str, log: str = "worker-1.log") -> str:
    """Runs the task; returns its id. Its lines are not among those of the start: processes work before their supervisor has said that it is ready."""
    until(lambda: "ready." in (project.directory / log).read_text(), "it says that it is ready")
    result = project.app.send_task("extra.talk", [word])
    project.wait_state(result.id, "SUCCESS")
    return str(result.id)


def line(text: str, words: str) -> str:
    """The one line with these words."""
    (found,) = [line for line in text.splitlines() if words in line]
    return found


def test_the_default_log_names_the_task_and_the_process(project: Project) -> None:
    (project.directory / "extra.py").write_text(TASKS)
    worker = project.worker("-c", "1", "-I", "extra")
    task_id = talk(project, "hello")
    stamp = r"\[[\d:, -]+: "
    task = re.escape(f"extra.talk[{task_id}]")
    until(lambda: "succeeded" in worker.log(), "the end of the task is logged")
    text = worker.log()
    assert re.fullmatch(rf"{stamp}INFO/ForkPoolWorker-1\] {task}: logged hello", line(text, "logged hello"))
    assert re.fullmatch(rf"{stamp}WARNING/ForkPoolWorker-1\] {task}: elsewhere hello", line(text, "elsewhere hello"))
    assert re.fullmatch(rf"{stamp}INFO/ForkPoolWorker-1\] Task {task} succeeded in [\d.e-]+s: None", line(text, "succeeded"))
    assert re.fullmatch(rf"{stamp}INFO/MainProcess\] w1@\S+ ready\.", line(text, "ready."))


def test_prints_of_tasks_are_logged(project: Project) -> None:
    (project.directory / "extra.py").write_text(TASKS)
    worker = project.worker("-c", "1", "-I", "extra")
    task_id = talk(project, "hello")
    for words in ("printed hello", "complained hello"):
        assert line(worker.log(), words).endswith(f"WARNING/ForkPoolWorker-1] extra.talk[{task_id}]: {words}")


def test_prints_are_left_alone_where_the_settings_say_so(make_project: MakeProject) -> None:
    project = make_project(worker_redirect_stdouts=False)
    (project.directory / "extra.py").write_text(TASKS)
    worker = project.worker("-c", "1", "-I", "extra", env={"PYTHONUNBUFFERED": "1"})
    talk(project, "hello")
    assert line(worker.log(), "printed hello") == "printed hello"


def test_logging_that_the_program_has_configured_stays(project: Project) -> None:
    (project.directory / "extra.py").write_text(OWN_LOGGING + TASKS)
    worker = project.worker("-c", "1", "-I", "extra")
    task_id = talk(project, "hello", log="own.log")
    until(lambda: "succeeded" in (project.directory / "own.log").read_text(), "the end of the task is logged")
    text = (project.directory / "own.log").read_text()
    assert line(text, "logged hello") == f"OWN INFO extra.talk {task_id} ForkPoolWorker-1 logged hello"
    assert line(text, "printed hello") == f"OWN WARNING extra.talk {task_id} ForkPoolWorker-1 printed hello"
    assert line(text, "ready.").startswith("OWN INFO None None MainProcess w1@")
    assert "hello" not in worker.log()


def test_a_spawned_process_logs_as_a_forked_one_does(project: Project) -> None:
    (project.directory / "extra.py").write_text(TASKS)
    worker = project.worker("-c", "1", "-I", "extra", "--pool-start-method", "spawn")
    task_id = talk(project, "hello")
    for words in ("logged hello", "printed hello"):
        assert line(worker.log(), words).endswith(f"/ForkPoolWorker-1] extra.talk[{task_id}]: {words}")
