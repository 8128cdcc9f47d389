"""Keeps the processes of a worker alive: starts, watches, replaces and stops them. One thread, no user code.

    register → start processes → (letters · deaths · limits · heartbeat · upkeep, fifty times a second) → stop → sign off

It is single-threaded so that it may fork at any time, and runs no task, hook or callback (only receivers of the signals of a worker's start and end), so that
nothing a task does can keep it from its heartbeat.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from msgspec import structs

from ..contracts.mailbox import Letter, Node
from ..core import events
from ..core.errors import EngineUnavailable, ImproperlyConfigured
from ..core.trouble import Trouble
from .companion import Companion
from .leases import NodeLease, this_boot, this_host
from .limits import watch
from .logs import setup_logging
from .maintenance import Upkeep
from .options import WorkerOptions
from .plan import Plan
from .pools.patching import check_installed
from .process import GREENLET_POOLS, Process
from .rates import RateLimits
from .recovery import give_back_abandoned, recover
from .remote import answer
from .slots import ProcessState
from .worker import EXIT_LEASE_LOST, EXIT_OK, EXIT_RECYCLED, Settler

if TYPE_CHECKING:
    from types import FrameType

    from ..app import Celeriac

logger = logging.getLogger("celeriac.worker")

TICK_SECONDS = 0.02
IDLE_TICK_SECONDS = 0.1
"""While nothing runs, ticks grow to this. An idle process takes one task first, so there are no hostages before the next tick."""
KILLED_WAIT_SECONDS = 5.0
RESTART_PAUSE_SECONDS = 1.0
"""Between two starts of a process that dies as soon as it starts."""
POOLS = ("prefork", "solo", "threads", "asyncio", "gevent", "eventlet")
_DEFAULT_CONCURRENCY = {"solo": 1, "threads": 10, "asyncio": 100, "gevent": 100, "eventlet": 100}

EXIT_RESTART = 75
"""`run_worker` was asked (SIGHUP) to begin again as a fresh program."""
_IN_PEACE = (EXIT_OK, EXIT_RECYCLED)
"""A process that ends so has settled all that was its own."""


def run_worker(app: Celeriac, options: WorkerOptions, companions: Sequence[Companion] = ()) -> int:
    """Runs a worker, and its companions beside it, until it is told to stop. Returns the exit code of the program.

    Raises: ImproperlyConfigured: an option or a setting makes no sense.
            EngineUnavailable: the engine cannot be used at the start.
    """
    if options.reload:
        from .reload import run_reloading

        return run_reloading()
    setup_logging(app, options.loglevel, options.logfile)
    code = Supervisor(app, options, companions).run()
    if code == EXIT_RESTART:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return code


class Supervisor:
    """One worker: a node with its processes."""

    def __init__(self, app: Celeriac, options: WorkerOptions, companions: Sequence[Companion] = ()) -> None:
        if options.pool not in POOLS:
            raise ImproperlyConfigured(f"Unknown pool {options.pool!r}; there are {', '.join(POOLS)}.")
        check_installed(options.pool)
        self.app = app
        self.options = options
        self.broker = app.broker
        conf = app.conf
        self.settler = Settler(app.broker, app.backend, together=app.results_with_broker)
        concurrency = options.concurrency or conf.worker_concurrency or _DEFAULT_CONCURRENCY.get(options.pool) or os.cpu_count() or 1
        many_processes = options.pool == "prefork"
        if options.autoscale and not many_processes:
            raise ImproperlyConfigured(f"--autoscale starts and stops processes, so it goes with --pool=prefork, not {options.pool!r}.")
        if not many_processes:
            self._say_what_cannot_be_limited(options)
        self.target = options.autoscale[1] if options.autoscale else concurrency if many_processes else options.processes or 1
        self.soft_shutdown_seconds = (
            conf.worker_soft_shutdown_timeout if options.soft_shutdown_timeout is None else options.soft_shutdown_timeout
        )
        queues = options.queues or app.router.queue_names()
        self.lease = NodeLease(
            self.broker,
            Node(
                id="",
                name=options.hostname or f"celeriac@{this_host()}",
                host=this_host(),
                boot=this_boot(),
                pid=os.getpid(),
                queues=[queue for queue in queues if queue not in options.exclude_queues],
                tasks=sorted(app.tasks),
                pool=options.pool,
                concurrency=concurrency,
                version=metadata.version("celeriac"),
            ),
            heartbeat_seconds=conf.worker_heartbeat_interval,
            lease_seconds=conf.worker_lease_duration,
        )
        self.plan = Plan(
            app_path=options.app_path or "",
            node="",
            hostname=self.lease.node.name,
            supervisor_pid=os.getpid(),
            queues=self.lease.node.queues,
            pool=options.pool,
            places=1 if many_processes or options.pool == "solo" else concurrency,
            start_method="spawn" if options.pool in GREENLET_POOLS else options.start_method,
            time_limit=options.time_limit,
            soft_time_limit=options.soft_time_limit,
            max_tasks=options.max_tasks_per_child or conf.worker_max_tasks_per_child,
            audit_seconds=conf.worker_lease_duration if app.broker.capabilities.forgets else 0.0,
            rates_fd=RateLimits.create(),
            loglevel=options.loglevel,
            logfile=options.logfile,
            include=options.include,
        )
        if self.plan.start_method == "spawn" and not options.app_path:
            raise ImproperlyConfigured("Spawned processes have to find the app again: start the worker with -A.")
        self.max_memory_bytes = 1024 * (options.max_memory_per_child or conf.worker_max_memory_per_child or 0)
        self.processes: dict[int, Process] = {}
        self.companions = companions
        self.unrecovered: list[Process] = []
        self.trouble = Trouble(logger, "The engine")
        self.upkeep = Upkeep(app.backend)
        self.started_at = time.time()
        self.finished_tasks = 0
        self._letters: deque[Letter] = deque()
        self._stops = 0
        self._cold = False
        self._restart = False
        self._deadline = 0.0
        self._audit_at = time.monotonic() + self.plan.audit_seconds
        self._not_before = 0.0

    def _say_what_cannot_be_limited(self, options: WorkerOptions) -> None:
        if options.time_limit or options.soft_time_limit or self.app.conf.task_time_limit or self.app.conf.task_soft_time_limit:
            logger.warning("Pool %r: %s", options.pool, _LIMITS_OF_POOLS.get(options.pool, "time limits hold as in prefork."))

    # -- the life of a worker ------------------------------------------------------------------------------------

    def run(self) -> int:
        """From the registration to the sign-off."""
        self._prepare()
        self.lease.begin()
        self.plan = structs.replace(self.plan, node=self.lease.node.id)
        self._install_signals()
        try:
            self._start_missing()
            events.worker_ready.send(sender=self)
            logger.info("%s ready.", self.plan.hostname)
            while not self._stopped():
                self._tick()
        finally:
            self._kill_all()
            for companion in self.companions:
                companion.end()
            if self.trouble.lasts:  # nobody would answer, and whoever stops us will not wait for long
                logger.warning(
                    "This worker does not sign off while its engine is away; others will notice in %g s.", self.lease.lease_seconds
                )
            else:
                self.lease.end()
            os.close(self.plan.rates_fd)
            events.worker_shutdown.send(sender=self)
        return EXIT_RESTART if self._restart else EXIT_OK

    def _prepare(self) -> None:
        rival = self.lease.rival()
        if rival is not None:
            raise ImproperlyConfigured(
                f"A worker named {rival.name!r} runs already on this machine (process {rival.pid}). "
                f"Give this one a name of its own, e.g. -n worker2@%h."
            )
        if self.options.purge:
            logger.warning("%d messages purged.", self.broker.purge(self.plan.queues))
        events.celeryd_after_setup.send(sender=self.plan.hostname, instance=self, conf=self.app.conf)
        events.worker_init.send(sender=self)
        gc.collect()
        gc.freeze()

    def _tick(self) -> None:
        try:
            self._letters.extend(self.broker.collect(self.lease.node.id, self._tick_seconds))
            while self._letters:
                letter = self._letters.popleft()
                # the engine's own letter is not remote control: it is how a revoke reaches a running task
                if letter.method == "terminate" or self.app.conf.worker_enable_remote_control:
                    answer(self, letter)
            if not self.lease.beat():
                self._begin_again()
            self._bury_the_dead()
            if not self._stops:
                self._start_missing()
                for companion in self.companions:
                    companion.watch()
                self.upkeep.run()
                self._audit()
                self._scale()
            if self.lease.well:
                self.trouble.over()
        except EngineUnavailable as error:
            self.trouble.seen(error)
            time.sleep(TICK_SECONDS)
        self._tick_seconds = min(IDLE_TICK_SECONDS, self._tick_seconds * 1.2)
        now = time.monotonic()
        for process in self.processes.values():
            process.page.renew(self.lease.until)
            if process.page.state() == ProcessState.BUSY:
                self._tick_seconds = TICK_SECONDS
                watch(process, self.settler, now)

    # -- processes -----------------------------------------------------------------------------------------------

    def _start_missing(self) -> None:
        living = [process for process in self.processes.values() if not process.draining]
        if len(living) >= self.target or time.monotonic() < self._not_before:
            return
        if self.plan.node != self.lease.node.id:
            self.plan = structs.replace(self.plan, node=self.lease.node.id)
        for _ in range(self.target - len(living)):
            number = next(number for number in range(1, len(self.processes) + 2) if number not in self.processes)
            try:
                self.processes[number] = Process(structs.replace(self.plan, process=number), self.app, [*self.processes.values()])
            except OSError as error:
                logger.error("Process %d cannot be started: %s. Trying again.", number, error)
                self._not_before = time.monotonic() + RESTART_PAUSE_SECONDS
                return

    def _bury_the_dead(self) -> None:
        """Settles what dead processes leave. What cannot be settled now (the engine is away) is tried again at the next tick."""
        dead = [process for process in self.processes.values() if process.ended()]
        for process in dead:
            del self.processes[process.number]
            self.unrecovered.append(process)
        if any(process.exit_code == EXIT_LEASE_LOST for process in dead):
            self._begin_again()
            return
        for process in dead:
            self._consider_end(process)
        while self.unrecovered:
            process = self.unrecovered[0]
            recover(process, self.settler)
            self.finished_tasks += process.page.done()
            process.close()
            del self.unrecovered[0]

    def _audit(self) -> None:
        if self.plan.audit_seconds and time.monotonic() >= self._audit_at:
            numbers = {*self.processes, *(process.number for process in self.unrecovered)}
            give_back_abandoned(self.lease.node.id, numbers, self.settler)
            self._audit_at = time.monotonic() + self.plan.audit_seconds

    def _consider_end(self, process: Process) -> None:
        if process.exit_code in _IN_PEACE or process.doom is not None or process.interrupted:
            return
        logger.warning("Process %d (pid %d) ended with exit code %s; it is replaced.", process.number, process.pid, process.exit_code)
        if process.page.state() == ProcessState.STARTING:
            self._not_before = time.monotonic() + RESTART_PAUSE_SECONDS

    def _begin_again(self) -> None:
        """Our lease ran out (we were stopped, or the machine slept): what we held belongs to others, so the processes that run it end."""
        logger.error("The lease of this worker had run out; it begins again under a new one, and others have its tasks.")
        for process in self.processes.values():
            process.kill()
        for process in [*self.processes.values(), *self.unrecovered]:
            _wait_for_end(process)
            process.close()
        self.processes.clear()
        self.unrecovered.clear()
        self.lease.begin()
        self.plan = structs.replace(self.plan, node=self.lease.node.id)

    def replace_processes(self) -> None:
        """Processes finish what runs and make room for new ones, which follow the plan as it is now."""
        for process in self.processes.values():
            process.drain()

    def _scale(self) -> None:
        if self.max_memory_bytes:
            for process in self.processes.values():
                if not process.draining and process.rss_bytes() > self.max_memory_bytes:
                    logger.warning("Process %d uses %d KiB; it is replaced.", process.number, process.rss_bytes() // 1024)
                    process.drain()
        if self.options.autoscale:
            self._autoscale(*self.options.autoscale)

    def _autoscale(self, most: int, fewest: int) -> None:
        """All busy: one more. Idle for a while: one less."""
        now = time.monotonic()
        living = [process for process in self.processes.values() if not process.draining]
        if now < self._next_scaling:
            return
        idle = [process for process in living if process.page.state() == ProcessState.IDLE]
        if not idle and len(living) < most and any(depth.ready for depth in self.broker.depth(self.plan.queues).values()):
            self.target = len(living) + 1
            self._next_scaling = now + 0.5
        elif len(idle) > 1 and len(living) > fewest:
            self.target = len(living) - 1
            idle[-1].drain()
            self._next_scaling = now + self.app.conf.worker_autoscale_keepalive
        else:
            self._next_scaling = now + 0.5

    _next_scaling = 0.0
    _tick_seconds = TICK_SECONDS

    def resize(self, processes: int) -> None:
        """So many processes from now on."""
        self.target = max(0, processes)
        living = [process for process in self.processes.values() if not process.draining]
        for process in living[self.target :]:
            process.drain()

    # -- the end -------------------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_stop)
        signal.signal(signal.SIGQUIT, self._on_quit)
        signal.signal(signal.SIGHUP, self._on_hangup)

    def _on_stop(self, signum: int, frame: FrameType | None) -> None:
        self.stop(how="cold" if self._stops else "warm")

    def _on_quit(self, signum: int, frame: FrameType | None) -> None:
        self.stop(how="cold")

    def _on_hangup(self, signum: int, frame: FrameType | None) -> None:
        self._restart = True
        self.stop()

    def stop(self, how: str = "warm") -> None:
        """Warm: nothing new, and what runs may end, for `worker_soft_shutdown_timeout`. Cold: what runs is given back now."""
        self._stops += 1
        self._cold = self._cold or how == "cold"
        if self._stops == 1:
            self._deadline = time.monotonic() + self.soft_shutdown_seconds
        # A signal handler calls this, maybe while a process is being started: so they are told between two ticks.

    def _stopped(self) -> bool:
        if not self._stops:
            return False
        for companion in self.companions:
            companion.stop()
        for process in self.processes.values():
            if not process.draining:
                process.drain()
        self._announce_stop()  # now it is true
        if self._cold or time.monotonic() > self._deadline:
            self._kill_all()
        return self._all_ended_in_peace()

    def _all_ended_in_peace(self) -> bool:
        """They have settled what was theirs: there is nothing to wait for, not even for an engine that is away."""
        return all(process.ended() and process.exit_code in _IN_PEACE for process in [*self.processes.values(), *self.unrecovered])

    _announced: frozenset[str] = frozenset()

    def _announce_stop(self) -> None:
        how = "cold" if self._cold else "warm"
        if how in self._announced:
            return
        self._announced |= {how}
        events.worker_shutting_down.send(sender=self.plan.hostname, sig=None, how=how.capitalize(), exitcode=EXIT_OK)
        if how == "warm":
            logger.warning(
                "Stopping: nothing new is taken; what runs may end within %g s. Once more to stop now.", self.soft_shutdown_seconds
            )
        else:
            logger.warning("Stopping now: what runs is given back.")

    def _kill_all(self) -> None:
        """What still runs is given back, as interrupted: no retry is used, no crash counted."""
        for process in self.processes.values():
            if not process.ended():
                process.interrupted = process.doom is None
                process.kill()
        for process in self.processes.values():
            _wait_for_end(process)
        if self.trouble.lasts and self._all_ended_in_peace():
            return  # they have settled what was theirs
        try:
            self._bury_the_dead()
        except EngineUnavailable as error:
            self.trouble.seen(error)
            logger.error("What this worker held will be ready again when its lease runs out: %s", error)
            self.unrecovered.clear()


def _wait_for_end(process: Process) -> None:
    deadline = time.monotonic() + KILLED_WAIT_SECONDS
    while not process.ended() and time.monotonic() < deadline:
        time.sleep(0.001)


_LIMITS_OF_POOLS = {
    "threads": "threads cannot be killed, so time limits are not enforced; use --pool=prefork for tasks that need them.",
    "asyncio": "limits cancel coroutines; plain functions run in threads, which cannot be killed.",
    "gevent": "limits end a greenlet when it next waits; code that never waits is not ended.",
    "eventlet": "limits end a greenlet when it next waits; code that never waits is not ended.",
}
