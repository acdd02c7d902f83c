"""A PostgreSQL server of the tests' own, as an unprivileged user, on a free loopback port."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.ports import free_port

_USER = "postgres"
_UP_S = 60.0
# A backend that waits for a busy disk cannot be ended, and the server waits for it.
_DOWN_S = 120.0
_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
shared_buffers = 64MB
log_min_messages = fatal
log_line_prefix = '@%d@%v@ '
"""


def binary(name: str) -> str:
    """Where a program of Debian's package postgresql is; it is not on everybody's path."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(installed[-1]) if installed else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: run make parts (it installs Debian's postgresql).")
    return found


class Cluster:
    """One server with one database."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"postgresql://watchkeeper@127.0.0.1:{port}/postgres"
        # Each entry begins with the database and the number of the transaction.
        self.log = folder.parent / "log"
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [binary("postgres"), "-D", str(self._folder), "-p", str(self._port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(_as_user(command), stderr=log)
        end = time.monotonic() + _UP_S
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end, "PostgreSQL did not start"
                time.sleep(0.05)

    def stop(self, *, at_once: bool = False) -> None:
        """Stop it: clients are cut, in an orderly way or as by a crash."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
        self._process.wait(_DOWN_S)

    def restart(self, *, at_once: bool = False) -> None:
        """Stop it and start it again."""
        self.stop(at_once=at_once)
        self.start()

    def ask_passwords_of(self, role: str) -> None:
        """Let nobody in as that role without its password; all others are trusted."""
        rules = self._folder / "pg_hba.conf"
        rules.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("select pg_reload_conf()")

    def fresh(self, name: str) -> str:
        """The URL of a new and empty database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"create database {name}".encode())
        return self.url.removesuffix("/postgres") + f"/{name}"

    def renew(self, name: str) -> None:
        """Empty a database that nobody has open."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())
        self.fresh(name)


class Shared:
    """The server on which tests put their stores, if there is one (see tests/conftest.py)."""

    server: Cluster | None = None


@contextmanager
def cluster(*, careful: bool = True) -> Iterator[Cluster]:
    """A server, until the block is left; one that is not careful leaves its disk to the system."""
    # Not in pytest's own directory, which is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="watchkeeper-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _USER)
        data = folder / "data"
        command = [binary("initdb"), "-D", str(data), "-U", "watchkeeper", "-A", "trust", "-N"]
        subprocess.run(_as_user(command), check=True, stdout=subprocess.DEVNULL, timeout=60)
        with (data / "postgresql.conf").open("a") as file:
            file.write(_CONFIGURATION + ("" if careful else "fsync = off\n"))
        server = Cluster(data, free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_user(command: Sequence[str]) -> list[str]:
    """It refuses to be root's."""
    if os.geteuid() != 0:
        return list(command)
    user = pwd.getpwnam(_USER)
    who = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [shutil.which("setpriv") or "setpriv", *who, *command]
