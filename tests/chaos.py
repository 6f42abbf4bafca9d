"""A fault proxy before an HTTP server: passes requests on, and spoils as many of them as it was told to."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Collection
from types import TracebackType
from typing import Literal

HOST = "127.0.0.1"
Fault = Literal["refuse", "503", "reset", "cut", "black_hole", "lost_ack", "slow"]
_PIECE = 65536
_SLOW_S = 0.05
_BUSY_BODY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>injected</Message></Error>"
_BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)


class _SpoiledError(Exception):
    """The connection ends here, with a TCP reset."""


class Chaos:
    """Listens on a free loopback port, `endpoint`, as long as the `with` block lasts.

    refuse      the connection is reset before the request is passed on
    503         answered with 503 SlowDown, not passed on
    reset       reset in the middle of the request's body, or of the answer's when the request has none
    cut         the answer's body ends too early, with a proper close
    black_hole  the request is swallowed and never answered
    lost_ack    a PUT, POST or DELETE is passed on and applied; the connection is reset instead of the answer
    slow        request and answer pass in pieces of 64 KB, each after a pause

    `injected` counts what was done.
    """

    def __init__(self, upstream_port: int) -> None:
        self.injected: Counter[str] = Counter()
        self._upstream_port = upstream_port
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._budget = self._after = 0
        self._methods: frozenset[str] = frozenset()
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def inject(self, fault: Fault, times: int, methods: Collection[str] = (), after: int = 0) -> None:
        """Spoil the next `times` requests that `fault` fits, of `methods` only when given, once `after` such
        requests have passed; replaces what was asked before."""
        with self._lock:
            self._fault, self._budget, self._methods = fault, times, frozenset(methods)
            self._after = after

    def calm(self) -> None:
        """Pass everything on."""
        with self._lock:
            self._budget = 0

    @property
    def left(self) -> int:
        """Faults asked for and not yet done."""
        return self._budget

    def _strikes(self, fault: Fault, method: str) -> bool:
        with self._lock:
            if self._fault != fault or not self._budget or (self._methods and method not in self._methods):
                return False
            if self._after:
                self._after -= 1
                return False
            self._budget -= 1
            self.injected[fault] += 1
            return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer: both ends are told to close after it."""
        ends = {writer}
        try:
            answers, upstream = await asyncio.open_connection(HOST, self._upstream_port)
            ends.add(upstream)
            self._open |= ends
            head = await _head(reader)
            method = head.split(b" ", 1)[0].decode()
            if self._strikes("refuse", method):
                raise _SpoiledError
            if self._strikes("503", method):
                await _send(writer, _BUSY)
                return
            if self._strikes("black_hole", method):
                await reader.read()
                return
            pause_s = _SLOW_S if self._strikes("slow", method) else 0
            async with asyncio.TaskGroup() as both:
                await _send(upstream, _closing(head))
                body = both.create_task(self._request_body(method, _length(head), reader, upstream, pause_s))
                await self._answer(method, answers, writer, pause_s)
                body.cancel()
        except* (_SpoiledError, OSError, asyncio.IncompleteReadError):
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        finally:
            self._open -= ends
            for end in ends:
                end.close()

    async def _request_body(
        self,
        method: str,
        length: int | None,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        pause_s: float,
    ) -> None:
        if length and self._strikes("reset", method):
            await _relay(source, sink, length // 2)
            raise _SpoiledError
        await _relay(source, sink, pause_s=pause_s)

    async def _answer(
        self, method: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pause_s: float
    ) -> None:
        head = await _head(source)
        while head.startswith(b"HTTP/1.1 100"):
            await _send(sink, head)
            head = await _head(source)
        if method in ("PUT", "POST", "DELETE") and self._strikes("lost_ack", method):
            raise _SpoiledError
        await _send(sink, _closing(head))
        length = 0 if method == "HEAD" else _length(head)
        if length and self._strikes("reset", method):
            await _relay(source, sink, length // 2)
            raise _SpoiledError
        if length and self._strikes("cut", method):
            await _relay(source, sink, length // 2)
            return
        await _relay(source, sink, pause_s=pause_s)

    def __enter__(self) -> Chaos:
        self._thread.start()
        listen = asyncio.start_server(self._serve, HOST, 0)
        self._server = asyncio.run_coroutine_threadsafe(listen, self._loop).result(10)
        self.endpoint = f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for end in self._open:
            end.transport.abort()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)


async def _head(source: asyncio.StreamReader) -> bytes:
    return await source.readuntil(b"\r\n\r\n")


async def _send(sink: asyncio.StreamWriter, data: bytes) -> None:
    sink.write(data)
    await sink.drain()


async def _relay(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, most: int | None = None, pause_s: float = 0
) -> None:
    """Until `source` ends, or `most` bytes are through."""
    left = most
    while left is None or left:
        piece = await source.read(_PIECE if left is None else min(left, _PIECE))
        if not piece:
            return
        await asyncio.sleep(pause_s)
        await _send(sink, piece)
        left = None if left is None else left - len(piece)


def _closing(head: bytes) -> bytes:
    """The same head, with the announcement that the connection closes afterwards."""
    start, _, fields = head.partition(b"\r\n")
    kept = re.sub(rb"(?im)^connection:[^\r\n]*\r\n", b"", fields)
    return b"%b\r\nConnection: close\r\n%b" % (start, kept)


def _length(head: bytes) -> int | None:
    """The body's length as announced; None when it is not."""
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
    return int(found[1]) if found else None
