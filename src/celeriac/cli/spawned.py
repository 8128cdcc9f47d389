"""Start of a worker process that was not forked; its arguments are PLAN PAGE_FD CONTROL_FD. `worker/pools/patching.py` says what runs before this."""

from __future__ import annotations

import sys
from typing import NoReturn

import msgspec

from ..worker.plan import Plan


def main() -> NoReturn:
    plan = msgspec.json.decode(sys.argv[1].encode(), type=Plan)
    _work(plan, int(sys.argv[2]), int(sys.argv[3]))


def _work(plan: Plan, page_fd: int, control_fd: int) -> NoReturn:
    from ..worker.logs import setup_logging
    from ..worker.process import serve_and_exit
    from ..worker.slots import Page
    from .finder import find_app

    app = find_app(plan.app_path)
    app.import_modules(plan.include)
    app.finalize()
    setup_logging(app, plan.loglevel, plan.logfile)
    serve_and_exit(app, plan, Page.attach(page_fd, plan.places), control_fd)


if __name__ == "__main__":
    main()
