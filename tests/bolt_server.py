"""A graph server that speaks Bolt, for the tests and the benchmark: ArcadeDB, in a Java of its own.

The wheel `arcadedb-embedded` brings both; the server listens on free ports of 127.0.0.1 alone.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

USER, PASSWORD, DATABASE = "root", "a secret kept by tests", "graph"
_PACKAGE = "arcadedb_embedded"
_QUICK = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m", "-Xshare:auto")


def installed() -> bool:
    """Whether the server's package is there."""
    return importlib.util.find_spec(_PACKAGE) is not None


class BoltServer:
    """The server on a folder; what was committed outlives `kill`."""

    def __init__(self, folder: Path, java: Sequence[str] = _QUICK) -> None:
        self.folder, self._java = folder, tuple(java)
        self._ports = _free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port of Bolt."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def pid(self) -> int | None:
        """The number of the process, while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def uri(self) -> str:
        """What the command line takes."""
        return f"bolt://{USER}@{self.address}/{DATABASE}"

    def start(self, seconds: float = 60.0) -> None:
        """Start, and wait until it is ready."""
        spec = importlib.util.find_spec(_PACKAGE)
        assert spec is not None and spec.origin is not None
        package, folder = Path(spec.origin).parent, self.folder
        folder.mkdir(parents=True, exist_ok=True)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        bolt, http = self._ports
        settings = {
            "server.rootPath": folder,
            "server.rootPasswordPath": secret,
            "server.databaseDirectory": folder / "databases",
            "server.logsDirectory": folder / "log",
            "server.plugins": "Bolt:com.arcadedb.bolt.BoltProtocolPlugin",
            "server.defaultDatabases": f"{DATABASE}[]",
            "server.httpIncomingHost": "127.0.0.1",
            "server.httpIncomingPort": http,
            "bolt.host": "127.0.0.1",
            "bolt.port": bolt,
            "bolt.defaultDatabase": DATABASE,
            "bolt.maxMessageSize": 64 << 20,
            "studio.enabled": "false",
            "typeDefaultBuckets": 1,
        }
        command = [
            str(package / "jre" / "bin" / "java"),
            *self._java,
            "--add-opens=java.base/java.util.concurrent.atomic=ALL-UNNAMED",
            "--add-opens=java.base/java.nio.channels.spi=ALL-UNNAMED",
            "--add-opens=java.base/java.lang=ALL-UNNAMED",
            "--add-modules=jdk.incubator.vector",
            "-Djava.awt.headless=true",
            "-Dfile.encoding=UTF8",
            "-Dpolyglot.engine.WarnInterpreterOnly=false",
            *(f"-Darcadedb.{name}={value}" for name, value in settings.items()),
            "-cp",
            str(package / "jars" / "*"),
            "com.arcadedb.server.ArcadeDBServer",
        ]
        with (folder / "out.txt").open("ab") as out:
            before = out.tell()
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self._wait(before, seconds)

    def _wait(self, before: int, seconds: float) -> None:
        assert self._process is not None
        log, end = self.folder / "out.txt", time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            # the port answers before the database is made
            if b"ArcadeDB Server started" in log.read_bytes()[before:]:
                return
            time.sleep(0.05)
        told = log.read_text("utf-8", "replace")[-3000:]
        self.kill()
        raise RuntimeError(f"the Bolt server does not start:\n{told}")

    def kill(self) -> None:
        """End the process at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Ask the process to end, and wait."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def environment() -> dict[str, str]:
    """What a command line in a process of its own needs to reach the server."""
    return {**os.environ, "KGRANK_NEO4J_PASSWORD": PASSWORD}
