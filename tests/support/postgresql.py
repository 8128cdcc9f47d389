"""A PostgreSQL server of the tests' own: Debian's programs, a temporary directory, a free port of the loopback; or the one that an environment variable names."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import pytest

VARIABLE = "CELERIAC_TEST_POSTGRESQL"
"""A URL, of a database in which the tests may make and drop schemas."""
PROGRAMS = "CELERIAC_TEST_POSTGRESQL_BIN"
"""The directory with the programs of another PostgreSQL than Debian's newest here."""
DEADLINE_SECONDS = 60.0


def program(name: str) -> str | None:
    named = os.environ.get(PROGRAMS)
    if named:
        if (found := shutil.which(name, path=named)) is None:
            pytest.fail(f"{PROGRAMS} names {named}, and there is no program {name} in it.")
        return found
    installed = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda path: float(path.split("/")[4]))
    return installed[-1] if installed else shutil.which(name)


def missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Server:
    """A server in a directory; `start`, `stop` and `kill` as often as wanted."""

    def __init__(self, directory: Path, *, options: dict[str, str] | None = None, port: int | None = None) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = port or free_port()
        self.options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(directory),
            **(options or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://celeriac@127.0.0.1:{self.port}/postgres"

    def make(self) -> None:
        self.directory.chmod(0o755)
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            for path in (self.directory, self.data):
                shutil.chown(path, self._user()[0])
        self._run([_program("initdb"), "-D", str(self.data), "-U", "celeriac", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])

    def replicate(self, directory: Path) -> Server:
        """A standby that follows this one; not started yet. It is its `synchronous_standby_names` by the name `standby`."""
        standby = Server(directory, options={**self.options, "port": str(free_port()), "unix_socket_directories": str(directory)})
        standby.port = int(standby.options["port"])
        directory.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(directory, self._user()[0])
        source = f"host=127.0.0.1 port={self.port} user=celeriac application_name=standby"
        self._run([_program("pg_basebackup"), "-d", source, "-D", str(standby.data), "-R", "-X", "stream", "-c", "fast", "--no-sync"])
        return standby

    def start(self) -> None:
        command = [_program("postgres"), "-D", str(self.data)]
        for name, value in self.options.items():
            command += ["-c", f"{name}={value}"]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(self._as_user(command), stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not _answers(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "log").read_text()[-2000:])
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: without waiting for clients. SIGQUIT: as in a crash, with its memory gone."""
        if self.process is not None:
            self._signal(how)
            self.process.wait(DEADLINE_SECONDS)
            self.process = None

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def _signal(self, how: signal.Signals) -> None:
        assert self.process is not None
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, how)

    def _run(self, command: list[str]) -> None:
        subprocess.run(self._as_user(command), check=True, capture_output=True, cwd="/")

    @staticmethod
    def _as_user(command: list[str]) -> list[str]:
        """The server refuses to run as root."""
        if os.geteuid() != 0:
            return command
        return ["setpriv", "--reuid", Server._user()[0], "--regid", Server._user()[1], "--clear-groups", *command]

    @staticmethod
    def _user() -> tuple[str, str]:
        for name in ("postgres", "nobody"):
            try:
                return name, str(pwd.getpwnam(name).pw_gid)
            except KeyError:
                continue
        raise RuntimeError("there is no user to run PostgreSQL as")


class Bouncer:
    """PgBouncer in transaction mode before a server: a statement may come to any of a few sessions."""

    def __init__(self, directory: Path, url: str, *, sessions: int = 4) -> None:
        parts = urlsplit(url)
        self.directory = directory
        self.port = free_port()
        self.url = f"postgresql://{parts.username}@127.0.0.1:{self.port}{parts.path}"
        (directory / "users").write_text(f'"{parts.username}" "{parts.password or ""}"\n')
        (directory / "ini").write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port or 5432}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir = {directory}\n"
            f"auth_type = trust\nauth_file = {directory / 'users'}\nadmin_users = {parts.username}\n"
            f"pool_mode = transaction\ndefault_pool_size = {sessions}\nmax_client_conn = 500\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if os.geteuid() == 0:
            for path in (self.directory, self.directory / "users", self.directory / "ini"):
                shutil.chown(path, Server._user()[0])
        command = [bouncer_program() or "pgbouncer", str(self.directory / "ini")]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(Server._as_user(command), stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not _answers(self.url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "log").read_text()[-2000:])
            time.sleep(0.02)

    def clients(self) -> list[str]:
        """The application names of those who are connected to it."""
        return [str(row["application_name"]) for row in self._show("CLIENTS")]

    def sessions(self) -> list[int]:
        """The processes of the server to which it is connected."""
        return [int(row["remote_pid"]) for row in self._show("SERVERS")]

    def _show(self, what: LiteralString) -> list[dict[str, Any]]:
        import psycopg
        from psycopg.rows import dict_row

        with psycopg.connect(f"{self.url.rpartition('/')[0]}/pgbouncer", autocommit=True, row_factory=dict_row) as console:
            return console.execute(f"SHOW {what}").fetchall()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(DEADLINE_SECONDS)
            self.process = None


def bouncer_program() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _program(name: str) -> str:
    found = program(name)
    assert found is not None
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SessionServer:
    """One for the whole run, started when it is first asked for."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._directory: str | None = None

    def url(self) -> str:
        try:
            import psycopg  # noqa: F401
        except ImportError:
            missing("psycopg is not installed (pip install 'celeriac[postgresql]')")
        named = os.environ.get(VARIABLE)
        if named:
            return named
        if program("postgres") is None or program("initdb") is None:
            missing(f"PostgreSQL is not installed (apt-get install postgresql), and {VARIABLE} names no server")
        if self._server is None:
            self._directory = tempfile.mkdtemp(prefix="celeriac-postgresql-")
            self._server = Server(
                Path(self._directory), options={"fsync": "off"}
            )  # nobody cuts the power; killed processes lose nothing by it
            self._server.make()
            self._server.start()
        return self._server.url

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
