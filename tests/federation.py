"""A Flower federation on loopback, with TLS and node authentication on, and a proxy that counts what nodes send."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from cgfedrec.deploy.certificates import write_certificates
from tests.conftest import ROOT

BIN = Path(sys.executable).parent
SUPERNODE = """
from flwr.supercore import heartbeat
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode
heartbeat.HEARTBEAT_DEFAULT_INTERVAL = fleet_http_connection.HEARTBEAT_DEFAULT_INTERVAL = 10
flower_supernode()
"""
"""``flower-supernode``, which says every 10 s that it is there, the least that a SuperLink takes.

By itself it does so every 30 s. A node is gone for Flower once it has been silent for twice that.
"""


class Proxy:
    """Passes TCP connections on to a port, and counts their bytes.

    Attributes:
        port: Where it listens.
        up, down: Bytes so far, from and to those who connect.
    """

    def __init__(self, target: int) -> None:
        self.target, self.up, self.down = target, 0, 0
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                for source, sink, up in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._pass_on, args=(source, sink, up), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    self.up += len(data) * up
                    self.down += len(data) * (not up)
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()


class Loopback:
    """A SuperLink and SuperNodes, each a process of its own; all end with the block.

    Args:
        folder: For keys, logs and what the server writes.
        nodes: The folder of each node.
    """

    def __init__(self, folder: Path, nodes: list[Path]) -> None:
        self.folder, self.node_folders = folder, nodes
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_UPDATE_CHECK_ENABLED": "0",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        keys = self.folder / "keys"
        write_certificates("127.0.0.1", keys, [f"node-{number}" for number in range(len(self.node_folders))])
        self.port = free_port()
        config = self.folder / "flwr" / "config.toml"
        config.parent.mkdir()
        config.write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{keys / "ca.crt"}"\n'
        )
        self.start(
            "superlink",
            *("flower-superlink", "--host", "127.0.0.1", "--port", self.port),
            *("--ssl-ca-certfile", keys / "ca.crt", "--ssl-certfile", keys / "server.crt"),
            *("--ssl-keyfile", keys / "server.key", "--enable-supernode-auth"),
            "--disable-runtime-dependency-installation",
        )
        self.proxy = Proxy(self.port)
        self._exit.callback(self.proxy.close)
        self.wait_for("the SuperLink", lambda: listens(self.port), 120)
        for number in range(len(self.node_folders)):
            self.flwr("supernode", "register", keys / f"node-{number}.pub", "here")
            self.start_node(number)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        self._exit.close()

    def start(self, name: str, *command: object) -> None:
        """Start a process; what it prints goes into a file of its name."""
        log = self._exit.enter_context((self.folder / f"{name}.log").open("ab"))
        self.processes[name] = subprocess.Popen(
            [str(BIN / str(command[0])), *map(str, command[1:])],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            cwd=self.folder,
            start_new_session=True,
        )

    def start_node(self, number: int) -> None:
        """Start a SuperNode, on a port of its own."""
        keys = self.folder / "keys"
        self.start(
            f"node-{number}",
            *(sys.executable, "-c", SUPERNODE, "--superlink", f"127.0.0.1:{self.proxy.port}"),
            *("--root-certificates", keys / "ca.crt", "--auth-supernode-private-key", keys / f"node-{number}"),
            *("--port", free_port(), "--node-config", f'folder="{self.node_folders[number]}"'),
        )

    def stop_node(self, number: int) -> None:
        """Stop a SuperNode politely."""
        process = self.processes[f"node-{number}"]
        process.send_signal(signal.SIGTERM)
        process.wait(120)

    def kill_node(self, number: int) -> None:
        """Kill a SuperNode and all its processes."""
        process = self.processes[f"node-{number}"]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def flwr(self, *command: object) -> str:
        """Run ``flwr`` to its end, and return what it prints."""
        done = subprocess.run(
            [str(BIN / "flwr"), *map(str, command)],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"flwr {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def log(self, name: str = "superlink") -> str:
        """What a process has printed so far."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, what: str, there: Callable[[], object], seconds: float) -> None:
        """Wait until something is so; fail with what was printed if it never is, or a SuperLink has ended."""
        until = time.monotonic() + seconds
        while not there():
            ended = self.processes["superlink"].poll() is not None
            if ended or time.monotonic() > until:
                logs = "\n".join(f"--- {name}\n{self.log(name)[-4000:]}" for name in self.processes)
                raise AssertionError(f"{what} has not come{' within its time' if not ended else ''}\n{logs}")
            time.sleep(0.2)

    def run(self, app: Path, config: Mapping[str, object]) -> str:
        """Start a run of an app, with other settings; returns its number."""
        given = " ".join(f"{name}={value}" for name, value in config.items())
        told = json.loads(self.flwr("run", app, "here", "--run-config", given, "--format", "json"))
        return str(told["run-id"])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        number: int = one.getsockname()[1]
        return number


def listens(port: int) -> bool:
    """Whether somebody listens on a port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
