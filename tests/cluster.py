"""A real Ray cluster of several nodes on this machine: `ray start` on 127.0.0.2, .3, .4 …, with a token.

A node is a process tree of its own and is lost as a real one is: SIGKILL to all of it at once.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

READY = "Ray runtime started"
START_S = 120
START_TRIES = 3
OBJECT_STORE = 300_000_000
RAY = (sys.executable, "-m", "ray.scripts.scripts")


@dataclass
class Node:
    """One `ray start --block` and everything below it."""

    ip: str
    process: subprocess.Popen
    log: Path

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def node_id(self) -> str:
        """Ray's own name of the node, in hex."""
        found = next(filter(None, (_raylet_id(p) for p in self.tree())), None)
        if found is None:
            raise RuntimeError(f"{self.ip} has no raylet")
        return found

    def tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def kill(self) -> None:
        """SIGKILL to the whole tree. It is stopped first, so that no process starts another meanwhile."""
        for process in (stopped := freeze(self.tree)):
            _signal(process, signal.SIGKILL)
        self.process.wait(60)
        until(lambda: not any(is_alive(process) for process in stopped), 10, f"{self.ip} outlives SIGKILL")


class RayNodes:
    """The cluster: a head at 127.0.0.2, and worker nodes that are added and lost.

    Args:
        workers: worker nodes at the start.
        cpus: logical CPUs of a worker node.
        gpus: GPUs of a worker node, for Ray's scheduler only.
        head_cpus: logical CPUs of the head. With 0, all work is done on worker nodes, which can be lost.
        dashboard: whether jobs can be submitted.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        cpus: int = 8,
        gpus: int = 0,
        head_cpus: int = 0,
        dashboard: bool = False,
    ) -> None:
        self.cpus, self.gpus, self.dashboard = cpus, gpus, dashboard
        # A node that is added later gets the environment and the working folder of the first.
        self._environment, self._cwd = dict(os.environ), os.getcwd()
        self.token = secrets.token_hex(32)
        # Short: Ray's sockets lie below, and a socket's path may have no more than 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="rn-"))
        self.port, self.dashboard_port = free_port("127.0.0.2"), free_port("127.0.0.1")
        self.nodes: list[Node] = []
        self._numbers, self._stopped = itertools.count(1), False
        try:
            head = ["--head", f"--port={self.port}", f"--include-dashboard={str(dashboard).lower()}"]
            if dashboard:
                head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}"]
            self.head = self._up(*head, f"--num-cpus={head_cpus}", "--num-gpus=0")
            # Together: a node waits most of the time that it needs to start.
            with ThreadPoolExecutor(max(1, workers)) as pool:
                list(pool.map(lambda _: self.add_node(), range(workers)))
            if dashboard:
                self._await_jobs()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.2:{self.port}"

    @property
    def dashboard_url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def workers(self) -> list[Node]:
        """Worker nodes that are up."""
        return [node for node in self.nodes if node is not self.head and node.alive]

    def environment(self) -> dict[str, str]:
        """What a client adds to its environment to use the cluster."""
        jobs = {"RAY_API_SERVER_ADDRESS": self.dashboard_url} if self.dashboard else {}
        return {
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            **jobs,
        }

    def find(self, title: str) -> list[tuple[Node, psutil.Process]]:
        """Worker processes whose title (the task that Ray runs there) matches, with their nodes."""
        named = {pid for pid in psutil.pids() if re.search(title, title_of(pid))}
        trees = [(node, node.tree()) for node in self.workers] if named else []
        return [(node, process) for node, tree in trees for process in tree if process.pid in named]

    def add_node(self, cpus: int | None = None, gpus: int | None = None) -> Node:
        """One more worker node, up and known to the cluster."""
        return self._up(
            f"--address={self.address}",
            f"--num-cpus={self.cpus if cpus is None else cpus}",
            f"--num-gpus={self.gpus if gpus is None else gpus}",
        )

    def add_node_later(self) -> None:
        """The same without waiting: the node joins when it is up."""
        threading.Thread(target=self.add_node, daemon=True).start()

    def kill_node(self, node: Node) -> None:
        """Lose the node: raylet, agents and workers die at once; the cluster is not told."""
        node.kill()

    def drain_node(self, node: Node, deadline_s: int) -> None:
        """A preemption notice: the node will be gone in `deadline_s` seconds."""
        command = [*RAY, "drain-node", f"--address={self.address}", f"--node-id={node.node_id}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=preempted"]
        command += [f"--deadline-remaining-seconds={deadline_s}"]
        environment = {**os.environ, **self.environment()}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)

    def stop(self) -> None:
        self._stopped = True
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _up(self, *options: str) -> Node:
        """Ray gives its own processes a fixed 30 s to start, which a busy machine can exceed."""
        for _ in range(START_TRIES):
            node = self._start(*options)
            if _came_up(node):
                return node
            node.kill()
            if self._stopped:
                break
        raise RuntimeError(node.log.read_text())

    def _await_jobs(self) -> None:
        """Until a job is accepted: the agent that takes jobs starts after the head."""
        submit = [*RAY, "job", "submit", "--no-wait", "--", "true"]
        environment = {**os.environ, **self.environment()}

        def accepted() -> bool:
            return subprocess.run(submit, env=environment, capture_output=True, timeout=60).returncode == 0

        until(accepted, START_S, "the head takes no jobs")

    def _start(self, *options: str) -> Node:
        number = next(self._numbers)
        # A new address each time: a lost node's is remembered as dead.
        ip = f"127.0.0.{number + 1}"
        home = self.folder / f"n{number}"
        home.mkdir()
        log = home / "start.log"
        command = [*RAY, "start", "--block", "--disable-usage-stats", f"--node-ip-address={ip}"]
        command += [f"--object-store-memory={OBJECT_STORE}", f"--temp-dir={home}", *options]
        # The agent that takes jobs listens on 127.0.0.1 too, where another Ray may hold the usual port.
        command += [f"--dashboard-agent-listen-port={free_port('127.0.0.1')}"]
        # A lost node is noticed after five failed checks.
        quick = {
            "RAY_health_check_period_ms": "400",
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        }
        environment = {**self._environment, **self.environment(), **quick}
        # `ray start` refuses to start a head where an address is set already.
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            environment.pop(name, None)
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._cwd,
                start_new_session=True,
            )
        node = Node(ip, process, log)
        self.nodes.append(node)
        return node


def _came_up(node: Node) -> bool:
    with suppress(TimeoutError):
        until(lambda: READY in node.log.read_text() or not node.alive, START_S, f"{node.ip} did not start")
    return node.alive and READY in node.log.read_text()


def shut_down_ray(seconds: float = 60) -> None:
    """Shut down the Ray of this process. One that does not end in time is killed, and its stacks are printed:
    a whole test run has once passed and then never ended."""
    import ray

    started = psutil.Process().children(recursive=True)
    shutdown = threading.Thread(target=ray.shutdown, daemon=True)
    shutdown.start()
    shutdown.join(seconds)
    if shutdown.is_alive():
        faulthandler.dump_traceback(file=sys.__stderr__)
        for process in freeze(lambda: [p for p in started if is_alive(p)]):
            _signal(process, signal.SIGKILL)
        # It may end now that there is nothing left to wait for.
        shutdown.join(seconds)


def freeze(listed: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """SIGSTOP to all of `listed()`, again until no new one turns up; what is stopped starts no process."""
    stopped: dict[int, psutil.Process] = {}
    while new := [process for process in listed() if process.pid not in stopped]:
        for process in new:
            _signal(process, signal.SIGSTOP)
            stopped[process.pid] = process
    return list(stopped.values())


def thaw(stopped: list[psutil.Process]) -> None:
    for process in stopped:
        _signal(process, signal.SIGCONT)


def title_of(pid: int) -> str:
    """`ray::Scorer.work` and the like; empty for a process that is no Ray worker, or gone."""
    line = _command_line(pid)
    return line if line.startswith("ray::") else ""


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs: not gone, and no zombie."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until(true: Callable[[], object], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.1)


def free_port(ip: str) -> int:
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return probe.getsockname()[1]


def _raylet_id(process: psutil.Process) -> str | None:
    found = re.search(r"--node[_-]id[= ]([0-9a-f]{56})", _command_line(process.pid))
    return found[1] if found else None


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
