"""`python -m celeriac` is the command `celeriac`."""

from __future__ import annotations

from .cli.main import main

main()
