"""The command line: `celeriac -A proj worker|status|inspect|…`. Parses, and calls what is below."""
