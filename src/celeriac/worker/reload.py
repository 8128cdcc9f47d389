"""`--reload`: a worker that begins again when a Python file below the working directory changes. For development."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys

from ..core.errors import ImproperlyConfigured

logger = logging.getLogger("celeriac.worker")


def run_reloading() -> int:
    """Runs the same command without `--reload`, again after each change. Returns its last exit code."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise ImproperlyConfigured("--reload needs the package watchfiles: pip install 'celeriac[reload]'.") from None
    command = [sys.executable, *[argument for argument in sys.orig_argv[1:] if argument != "--reload"]]
    worker = subprocess.Popen(command)

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        for changes in watch(os.getcwd(), watch_filter=PythonFilter(), raise_interrupt=True):
            print(f"{len(changes)} file(s) changed ({', '.join(sorted(path for _, path in changes))[:200]}); starting again.", flush=True)
            _end(worker)
            worker = subprocess.Popen(command)
    except KeyboardInterrupt:
        pass
    return _end(worker)


def _end(worker: subprocess.Popen[bytes]) -> int:
    if worker.poll() is None:
        worker.terminate()
    return worker.wait()
