"""One module a peer: the tasks of `bench/workload.py`, registered as that peer's documentation says. Imported only in that peer's own interpreter.

Each module has

    add(2, 2) · stamp() · timed(called_ns) · pid()   send the task, and return a handle; where a peer can do it, nap(seconds) and doze() too
    value(handle, timeout_seconds)                   waits for its result
    key(handle) · find(key)                          a handle as text, and back, in another process

One that can send many in one trip may have `fill(name, args, count)`, which returns keys: it is not measured.
A peer whose calls are coroutines has `many(name, arguments)` in place of the first line: it sends one after another and returns their handles.
`BENCH_BROKER` and `BENCH_BACKEND` in the environment say where.
"""
