"""Start of a worker process that was not forked; its arguments are PLAN PAGE_FD CONTROL_FD. `worker/pools/patching.py` says what runs before this."""

from __future__ import annotations

import sys

import msgspec

from ..worker.plan import Plan


def main() -> int:
    plan = msgspec.json.decode(sys.argv[1].encode(), type=Plan)
    return _work(plan, int(sys.argv[2]), int(sys.argv[3]))


def _work(plan: Plan, page_fd: int, control_fd: int) -> int:
    from ..worker.logs import setup_logging
    from ..worker.process import serve
    from ..worker.slots import Page
    from .finder import find_app

    app = find_app(plan.app_path)
    app.import_modules(plan.include)
    app.finalize()
    setup_logging(app, plan.loglevel, plan.logfile)
    return serve(app, plan, Page.attach(page_fd, plan.places), control_fd)


if __name__ == "__main__":
    sys.exit(main())
