"""A real PostgreSQL server for the tests, in a temporary folder; skips where it is not installed."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

USER, PASSWORD = "ada", "canary-5f1c-of-the-tests"
_CONFIG = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
max_connections = 60
shared_buffers = 32MB
"""


@dataclass
class Server:
    """A server that can be stopped and started."""

    bin: Path
    data: Path
    port: int
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str, user: str = USER) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def database(self) -> str:
        """Return the address of an empty database; a server that a test left stopped is started.

        A few are used in turn: to make and remove one takes longer than most tests.
        """
        if not (self.data / "postmaster.pid").exists():
            self.start()
        name = f"test_{next(self.numbers) % 4}"
        self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname='{name}'")
        if not self.sql(f"SELECT 1 FROM pg_database WHERE datname='{name}'"):
            self.sql(f"CREATE DATABASE {name}")
        self.sql("DROP SCHEMA IF EXISTS cloudai CASCADE", self.url(name))
        return self.url(name)

    def sql(self, statement: str, url: str = "") -> list[tuple]:
        import psycopg

        with psycopg.connect(url or self.url("postgres"), autocommit=True, password=PASSWORD) as db:
            found = db.execute(statement)
            return found.fetchall() if found.description else []

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-D", self.data, "-l", self.data / "log")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-D", self.data, "-m", "immediate")

    def _run(self, tool: str, *arguments) -> None:
        done = subprocess.run(
            [self.bin / tool, *map(str, arguments)],
            **_as_user(),
            cwd=self.data.parent,
            env={"PATH": os.defpath, "LC_ALL": "C"},  # without CLOUDAI_HOME: it is no process of a test's home
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _as_user() -> dict:
    """Return how to start it: the server refuses to run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    tool = str(found[-1]) if found else shutil.which("initdb")
    if tool is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="cloudai-postgres-"))
    passwords, before = folder / "pgpass", os.environ.get("PGPASSFILE")
    try:
        folder.chmod(0o755)
        (folder / "password").write_text(PASSWORD)
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        server = Server(Path(tool).parent, folder / "data", _free_port())
        server._run(
            "initdb",
            "-D",
            server.data,
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            f"--pwfile={folder / 'password'}",
            "--no-sync",
            "-E",
            "UTF8",
        )
        (server.data / "postgresql.auto.conf").write_text(_CONFIG + f"port = {server.port}\n")
        passwords.write_text(f"127.0.0.1:{server.port}:*:*:{PASSWORD}\n")
        passwords.chmod(0o600)
        os.environ["PGPASSFILE"] = str(passwords)
        server.start()
        yield server
        server.stop()
    finally:
        os.environ.pop("PGPASSFILE", None)
        if before is not None:
            os.environ["PGPASSFILE"] = before
        shutil.rmtree(folder, ignore_errors=True)
