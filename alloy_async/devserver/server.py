"""Running the development edge: behind a ``with`` for tests, in the foreground for a terminal."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import uvicorn

from .connection import offering_connections

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path
    from types import FrameType

    from starlette.applications import Starlette

    from .certificate import Certificate

__all__ = ["Serving", "run", "serving"]

_Loop = Literal["auto", "asyncio"]

_BACKLOG = 2048
_GRACE = 3  # seconds that a client in the middle of a request gets when the server stops


@dataclass(frozen=True, slots=True)
class Serving:
    """A development edge that runs.

    Attributes:
        url: its address, without a slash at the end.
    """

    url: str


@contextmanager
def serving(
    app: Starlette, host: str = "127.0.0.1", port: int = 0, *, tls: Certificate | None = None
) -> Iterator[Serving]:
    """Serve an application from a thread for as long as the block runs.

    Args:
        app: from `create_app`.
        host: address to listen at; loopback unless told otherwise.
        port: 0 takes a free one.
        tls: from `throw_away_certificate`; with it https is spoken, and http is not.

    Yields:
        The address, ready to take requests.

    Raises:
        OSError: the address cannot be used.
        RuntimeError: the server did not start; its reason is the cause.
    """
    config = _config(app, tls, loop="asyncio")  # "auto" may exchange the loops of a whole process
    listener = _listen(host, port)
    url = _url(listener, tls)
    server = _Server(config, app)
    thread = threading.Thread(target=server.run_quietly, args=(listener,), name="development-edge")
    thread.start()
    try:
        server.ready.wait()
        if not server.started:
            raise RuntimeError("the development edge did not start") from server.failure
        yield Serving(url)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def run(
    app: Starlette,
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    tls: Certificate | None = None,
    announce: Callable[[str], object] | None = None,
) -> None:
    """Serve an application until Ctrl-C or SIGTERM, then return.

    Args:
        app: from `create_app`.
        host: address to listen at; loopback unless told otherwise.
        port: 0 takes a free one.
        tls: from `throw_away_certificate`; with it https is spoken, and http is not.
        announce: takes the line that says where it listens, and who can reach it; by default standard error does.

    Raises:
        OSError: the address cannot be used.
    """
    # The process is the edge's alone, so a faster loop may be taken where it is installed.
    config = _config(app, tls, loop="auto")
    listener = _listen(host, port)
    try:
        server = _Server(config, app)
        # Said once it serves and obeys signals, not before: whoever reads the line may press Ctrl-C at once.
        server.when_ready = lambda: (announce or _to_standard_error)(_announcement(listener, tls))
        server.run(sockets=[listener])
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """Uvicorn's server, with an event for "ready" and without raising a signal again after it was obeyed."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app
        self.ready = threading.Event()
        self.when_ready: Callable[[], object] = lambda: None
        self.failure: BaseException | None = None

    def run_quietly(self, listener: socket.socket) -> None:
        try:
            self.run(sockets=[listener])
        except BaseException as error:  # noqa: BLE001 - the starting thread raises it, SystemExit included
            self.failure = error
        finally:
            self.ready.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()
        self.when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Before it waits for connections: whoever follows the feed would hold it up for the whole grace.
        self._app.state.feed.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # The original raises the signal once more at the end, so that SIGTERM would kill the command line instead of
        # letting it return, and Ctrl-C would show a traceback.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C does not wait for clients.
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True


def _config(app: Starlette, tls: Certificate | None, *, loop: _Loop) -> uvicorn.Config:
    with nullcontext() if tls is None else tls.as_file() as file:
        config = _uvicorn_config(app, file, loop)
        config.load()  # reads the file, which is gone afterwards
    return config


def _uvicorn_config(app: Starlette, key_and_certificate: Path | None, loop: _Loop) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=offering_connections(),
        loop=loop,
        log_config=None,  # the host program's logging is not ours to set up
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        ssl_certfile=key_and_certificate,
        timeout_graceful_shutdown=_GRACE,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _url(listener: socket.socket, tls: Certificate | None) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _announcement(listener: socket.socket, tls: Certificate | None) -> str:
    url = _url(listener, tls)
    address = ipaddress.ip_address(listener.getsockname()[0])
    reach = (
        "loopback only: other machines cannot reach it"
        if address.is_loopback
        else "NOT loopback: other machines can reach it"
    )
    return f"Development edge at {url} ({reach}). Page: {url}/_dev/"


def _to_standard_error(line: str) -> None:
    sys.stderr.write(f"{line}\n")
