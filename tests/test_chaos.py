"""The fault proxy spoils what it was told to, as it was told to, and nothing else."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chaos import Chaos

BODY = bytes(200_000)


class Upstream(BaseHTTPRequestHandler):
    """Notes each request whose body came whole."""

    applied: list[str]

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if len(self.rfile.read(length)) == length:
            self.applied.append(self.command)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    do_GET = do_PUT = answer

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def applied() -> list[str]:
    return []


@pytest.fixture
def proxy(applied) -> Iterator[Chaos]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Noting", (Upstream,), {"applied": applied}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with Chaos(server.server_port) as chaos:
        yield chaos
    server.shutdown()
    server.server_close()
    thread.join()


def ask(proxy: Chaos, method: str, timeout: float = 10) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=timeout)
    try:
        connection.request(method, "/", body=BODY if method == "PUT" else None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_without_faults_everything_passes(proxy, applied, method):
    assert ask(proxy, method) == (200, BODY)
    assert applied == [method] and not proxy.injected


@pytest.mark.parametrize(
    ("fault", "method", "error", "is_applied"),
    [
        ("refuse", "GET", ConnectionError, False),
        ("reset", "GET", (ConnectionError, http.client.IncompleteRead), True),
        ("reset", "PUT", ConnectionError, False),
        ("cut", "GET", http.client.IncompleteRead, True),
        ("black_hole", "GET", TimeoutError, False),
        ("black_hole", "PUT", TimeoutError, False),
        ("lost_ack", "PUT", ConnectionError, True),
    ],
)
def test_each_fault_does_what_it_says(proxy, applied, fault, method, error, is_applied):
    proxy.inject(fault, 1)
    with pytest.raises(error):
        ask(proxy, method, timeout=1)
    assert applied == [method] * is_applied
    assert proxy.injected == {fault: 1} and proxy.left == 0
    assert ask(proxy, method) == (200, BODY)


def test_a_busy_server_answers_and_does_nothing(proxy, applied):
    proxy.inject("503", 2)
    assert [ask(proxy, "GET")[0] for _ in range(3)] == [503, 503, 200]
    assert applied == ["GET"]


def test_slow_is_whole(proxy):
    proxy.inject("slow", 1)
    assert ask(proxy, "PUT") == (200, BODY)


def test_faults_wait_for_their_method_and_their_turn(proxy):
    proxy.inject("503", 1, {"PUT"}, after=1)
    asked = ["GET", "PUT", "GET", "PUT", "PUT"]
    assert [ask(proxy, method)[0] for method in asked] == [200, 200, 200, 503, 200]


def test_calm_ends_what_was_asked(proxy):
    proxy.inject("503", 5)
    proxy.calm()
    assert ask(proxy, "GET")[0] == 200 and not proxy.injected
