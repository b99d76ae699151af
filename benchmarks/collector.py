"""A collector for the benchmarks: a process of its own that counts what arrives and answers each client's API.

It does as little as it can, so that it stays far faster than any client: no JSON is read, an event is counted by a
text that stands in it exactly once. ``GET /counts`` tells what was counted, ``GET /reset?SECONDS`` forgets it and sets
how long each answer takes from now on.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from collections import Counter

PURCHASE, SNOWPLOW = (
    b'"purchaseID"',
    b'"eid"',
)  # once in each event; snowplow hides what it is given in base64

_NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"

APIS = {
    b"/ee/v1/collect": (PURCHASE, _NO_CONTENT),
    b"/v1/batch": (PURCHASE, _OK % (16, b'{"success":true}')),
    b"/batch/": (PURCHASE, _OK % (12, b'{"status":1}')),
    b"/com.snowplowanalytics.snowplow/tp2": (SNOWPLOW, _OK % (2, b"ok")),
}
"""Path to what is counted there, and the answer its client expects."""

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_GZIP = re.compile(rb"\r\ncontent-encoding:\s*gzip", re.IGNORECASE)


class Books:
    """What was counted since the last reset, and how long answers take."""

    def __init__(self) -> None:
        self.reset(0.0)

    def reset(self, latency: float) -> None:
        """Forget what was counted."""
        self.latency = latency
        self.requests: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.bytes = 0
        self._cpu = time.process_time()

    def take(self, path: bytes, body: bytes | bytearray) -> bytes:
        """Count a request and its events; return the answer."""
        marker, answer = APIS.get(path, (PURCHASE, _NOT_FOUND))
        name = path.decode()
        self.requests[name] += 1
        self.events[name] += body.count(marker)
        self.bytes += len(body)
        return answer

    def tell(self) -> bytes:
        """Return the counts as JSON; with the CPU seconds that this process took for them."""
        told = {
            "requests": self.requests.total(),
            "events": self.events.total(),
            "bytes": self.bytes,
            "paths": self.events,
            "cpu": time.process_time() - self._cpu,
        }
        return json.dumps(told).encode()


class Connection(asyncio.Protocol):
    """HTTP/1.1 as far as these clients speak it: kept alive, bodies with a length or in chunks, gzip or plain."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._received = bytearray()
        self._head: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._received and self._take_request():
            pass

    def _take_request(self) -> bool:
        """Answer one request that is complete; return False when more has to come."""
        if self._head is None:
            end = self._received.find(_END)
            if end < 0:
                return False
            self._head = bytes(self._received[:end])
            del self._received[: end + len(_END)]
        body = self._take_body(self._head)
        if body is None:
            return False
        target = self._head.split(b" ", 2)[1]
        if _GZIP.search(self._head):
            body = zlib.decompress(body, zlib.MAX_WBITS | 16)
        self._head = None
        self._answer(target, body)
        return True

    def _take_body(self, head: bytes) -> bytes | bytearray | None:
        if _CHUNKED.search(head):
            return self._take_chunks()
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if len(self._received) < length:
            return None
        if len(self._received) == length:
            body, self._received = self._received, bytearray()
            return body
        body = self._received[:length]
        del self._received[:length]
        return body

    def _take_chunks(self) -> bytes | None:
        chunks, start = [], 0
        while True:
            line = self._received.find(b"\r\n", start)
            if line < 0:
                return None
            size = int(self._received[start:line].split(b";")[0], 16)
            start = line + 2 + size + 2
            if len(self._received) < start:
                return None
            if size == 0:
                del self._received[:start]
                return b"".join(chunks)
            chunks.append(self._received[line + 2 : line + 2 + size])

    def _answer(self, target: bytes, body: bytes | bytearray) -> None:
        path, _, query = target.partition(b"?")
        if path == b"/counts":
            told = self._books.tell()
            self._transport.write(_OK % (len(told), told))
        elif path == b"/reset":
            self._books.reset(float(query))
            self._transport.write(_OK % (2, b"{}"))
        else:
            answer = self._books.take(path, body)
            if self._books.latency:
                asyncio.get_running_loop().call_later(self._books.latency, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def main() -> None:
    """Serve on a free port of loopback, which is printed, until the process is ended."""
    books = Books()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(books), "127.0.0.1", 0, backlog=1_000
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
