"""A small shop's background work, done by real worker processes. `python -m examples.demo`, or `make demo`."""
