from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from celeriac import Celeriac
from celeriac.core import events
from celeriac.tasks import registry
from celeriac.worker import logs
from celeriac.worker.logs import Printed, setup_logging


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger; all is as before afterwards. (pytest adds its handlers after this, so each test drops them first.)"""
    root, own = logging.getLogger(), logging.getLogger("celeriac")
    handlers, level, own_level, factory = root.handlers[:], root.level, own.level, logging.getLogRecordFactory()
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    own.setLevel(own_level)
    logging.setLogRecordFactory(factory)


def make_app(**settings: object) -> Celeriac:
    before = registry.current.app
    app = Celeriac("proj", broker="memory://", set_as_current=False, **settings)
    assert registry.current.app is before
    return app


def record(level: int = logging.INFO, message: str = "hello", **more: object) -> logging.LogRecord:
    made = logging.LogRecord("shop", level, "file.py", 1, message, (), None)
    made.__dict__.update({"task_id": None, "task_name": None, **more})
    return made


def test_who_has_configured_nothing_gets_a_handler(root: logging.Logger) -> None:
    root.handlers.clear()
    setup_logging(make_app(), "INFO")
    assert (len(root.handlers), root.level) == (1, logging.INFO)


def test_who_has_configured_logging_keeps_it(root: logging.Logger) -> None:
    root.handlers.clear()
    own = logging.NullHandler()
    root.addHandler(own)
    root.setLevel(logging.ERROR)
    setup_logging(make_app(), "INFO")
    assert (root.handlers, root.level) == ([own], logging.ERROR)


def test_a_logfile_comes_beside_what_is_configured(root: logging.Logger, tmp_path) -> None:
    root.handlers.clear()
    own = logging.NullHandler()
    root.addHandler(own)
    root.setLevel(logging.ERROR)
    setup_logging(make_app(), "INFO", str(tmp_path / "log"))
    assert root.handlers[0] is own and root.level == logging.ERROR
    logging.getLogger("celeriac.worker").info("seen")
    assert "seen" in (tmp_path / "log").read_text()


def test_hijacking_replaces_what_is_configured(root: logging.Logger) -> None:
    root.handlers.clear()
    own = logging.NullHandler()
    root.addHandler(own)
    setup_logging(make_app(worker_hijack_root_logger=True), "INFO")
    assert own not in root.handlers and len(root.handlers) == 1


def test_a_receiver_of_setup_logging_takes_over(root: logging.Logger) -> None:
    root.handlers.clear()
    seen = []
    receiver = lambda **details: seen.append(details["loglevel"])  # noqa: E731
    events.setup_logging.connect(receiver, weak=False)
    try:
        setup_logging(make_app(), "DEBUG")
    finally:
        events.setup_logging.disconnect(receiver)
    assert seen == [logging.DEBUG] and root.handlers == []


def test_formats_and_times_are_those_of_the_settings(root: logging.Logger) -> None:
    root.handlers.clear()
    settings = {
        "worker_log_format": "plain %(asctime)s %(message)s",
        "worker_task_log_format": "%(task_name)s %(asctime)s %(message)s",
        "worker_log_datefmt": "PLAIN",
        "worker_task_log_datefmt": "TASK",
    }
    setup_logging(make_app(**settings), "INFO")
    show = root.handlers[0].format
    assert show(record()) == "plain PLAIN hello"
    assert show(record(task_id="1", task_name="shop.pay")) == "shop.pay TASK hello"


@pytest.mark.parametrize(
    ("setting", "terminal", "coloured"), [(None, True, True), (None, False, False), (True, False, True), (False, True, False)]
)
def test_colours(root: logging.Logger, monkeypatch: pytest.MonkeyPatch, setting: bool | None, terminal: bool, coloured: bool) -> None:
    root.handlers.clear()
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(logs.sys, "stderr", stream)
    setup_logging(make_app(worker_log_color=setting), "INFO")
    assert root.handlers[0].format(record(logging.ERROR)).startswith("\033[31m") is coloured


# -- prints -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def printed(caplog: pytest.LogCaptureFixture) -> Printed:
    caplog.set_level(logging.INFO)
    return Printed(io.StringIO(), logging.getLogger("test.redirected"), logging.WARNING)


def test_each_line_that_is_printed_is_a_record(printed: Printed, caplog: pytest.LogCaptureFixture) -> None:
    print("one", "two", file=printed)
    print("half", end="", file=printed)
    assert caplog.messages == ["one two"]
    print(" and half\n\nlast", file=printed)
    assert caplog.messages == ["one two", "half and half", "last"]
    print("100%", end="", file=printed)
    printed.finish()
    assert caplog.messages[-1] == "100%"
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_handler_that_prints_does_not_turn_in_circles(printed: Printed) -> None:
    handler = logging.StreamHandler(printed)  # type: ignore[arg-type]
    logger = logging.getLogger("test.redirected")
    logger.addHandler(handler)
    try:
        print("once", file=printed)
    finally:
        logger.removeHandler(handler)
    assert printed.stream.getvalue() == "once\n"  # type: ignore[attr-defined]


def test_a_line_without_an_end_does_not_grow_for_ever(printed: Printed, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        printed.write("x" * (logs.LONGEST_LINE - 1))
    assert [len(message) for message in caplog.messages] == [2 * (logs.LONGEST_LINE - 1)]


def test_all_else_is_the_streams_own(printed: Printed) -> None:
    assert printed.getvalue() == "" and not printed.isatty()
