"""What the tests of misfortune share: a clock on which waiting is short, and a server that misbehaves by plan."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import suppress

from alloy_async._clock import SystemClock

_LEAVE_WITH_RESET = struct.pack("ii", 1, 0)


class Hasty(SystemClock):
    """A clock on which waiting passes a hundred times as fast. The wall clock, by which leases go, is left alone."""

    def monotonic(self):
        return time.monotonic() * 100

    def call_later(self, delay, callback):
        return super().call_later(delay / 100, callback)


class UnkindServer:
    """An HTTP/1.1 server on a loopback port; what it does with a request says ``serve_one``.

    Attributes:
        url: scheme, host and port; known inside ``async with``.
    """

    async def __aenter__(self):
        self._serving = {}
        self._server = await asyncio.start_server(self._welcome, "127.0.0.1", 0, limit=1 << 17)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task, writer in self._serving.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def serve_one(self, reader, writer):
        """Read and answer one request; return whether another may follow."""
        raise AssertionError("a server says what it does")

    def reset(self, writer):
        """End the connection with a TCP reset."""
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LEAVE_WITH_RESET)
        writer.transport.abort()
        return False

    def _welcome(self, reader, writer):
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._serving[task] = writer
        task.add_done_callback(self._serving.pop)

    async def _serve(self, reader, writer):
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):  # the client left
                while await self.serve_one(reader, writer):
                    await writer.drain()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
