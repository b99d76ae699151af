"""A connection to Redis or Valkey that no caller can cancel half-way; the only file that imports redis.

It is imported where a link is made, so that the library comes without it. Installed by the extra ``redis``.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from functools import cache, partial
from hashlib import blake2b, sha1
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING, Any, TypeVar

from .edge._loop_bound import LoopBound
from .errors import ConfigurationError

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub
    from redis.asyncio.connection import ConnectionPool

__all__ = [
    "LinkClosed",
    "RedisLink",
    "Script",
    "attend",
    "describe",
    "failures",
    "key_prefix",
]

T = TypeVar("T")

AT_ONCE = 16
"""Calls that are on the wire at the same time, each on a connection of its own; others wait for their turn."""

_MOVES = 3
"""Nodes of a cluster that a call may be sent on to; more than one only while keys move."""

_KEPT = 8
"""Nodes of a cluster whose connections are kept, beside the first one: the keys of a link lie in one, or in a few."""

_STEPS = 4
"""Steps in which calls wait for their turn."""


class LinkClosed(OSError):
    """``aclose`` came first."""


class RedisLink:
    """Runs functions on a client of ours, each in a task of ours, bounded in time.

    It belongs to the event loop that runs when it is used: another loop, or a forked process, gets connections of its
    own and never touches those of the first.

    Args:
        url: ``redis://``, ``rediss://`` (with TLS) or ``unix://``, with user, password and options as redis-py takes
            them.
        timeout: seconds that a call may take once it has its turn, connecting included. A call waits for its turn as
            long as others come to a good end, and no longer than this without.

    Raises:
        ConfigurationError: the URL cannot be used, or redis-py is not installed.
    """

    def __init__(self, url: str, *, timeout: float = 2.0) -> None:
        self.timeout = timeout
        make_pool = partial(_pool, url, timeout)
        self.place = _check(url, make_pool)
        self._client = LoopBound(partial(_Client, make_pool, timeout), _Client.close)
        self._background: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"RedisLink({self.place!r})"

    async def run(self, work: Callable[[Redis], Awaitable[T]]) -> T:
        """Run a function with the client, and return what it returns; a cancelled caller leaves it running to its end.

        Raises:
            redis.RedisError, OSError: as they are; ``failures`` names them all, ``describe`` puts them into words.
            TimeoutError: it took longer than ``timeout``; then it may have happened or not.
            LinkClosed: ``aclose`` came first.
        """
        client = await self._get()
        return await client.perform(work)

    async def client(self) -> Redis:
        """Return the client itself, for what lasts longer than a call: subscriptions, in a task of ``start``."""
        return (await self._get()).redis

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a coroutine in the background; ``aclose`` cancels it."""
        task = asyncio.Task(coroutine, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def aclose(self) -> None:
        """Cancel what runs in the background, let calls come to their end, and close; harmless when called twice."""
        loop = asyncio.get_running_loop()
        await _end({task for task in self._background if task.get_loop() is loop})
        await self._client.aclose()

    async def _get(self) -> _Client:
        try:
            return await self._client.get()
        except RuntimeError:
            pass
        raise LinkClosed


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended.

    Once is not always enough: before Python 3.12 ``asyncio.wait_for``, which redis-py uses, may swallow it.
    """
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=0.05)


class _Client:
    """The client of one event loop, and the calls that use it.

    In a cluster a node says where the keys lie that it does not have. The keys of a call lie in one slot, so that the whole
    call goes there, and those that follow too. redis-py's own client for clusters tries again by itself, and cannot
    be kept from it.

    Attributes:
        redis: at the node that had the keys of the last call; messages come from any.
    """

    def __init__(self, make_pool: Callable[..., ConnectionPool], timeout: float) -> None:
        self._make_pool = make_pool
        self._nodes: dict[tuple[str, int], Redis] = {}  # the one that was asked last at the end
        self._let_go: dict[Redis, asyncio.Task[None]] = {}
        self._first = self.redis = self._connect()
        self._host: str = self._first.connection_pool.connection_kwargs.get("host", "localhost")
        self._timeout = timeout
        self._turns = _Turns(timeout)
        self._calls: set[asyncio.Task[Any]] = set()

    async def perform(self, work: Callable[[Redis], Awaitable[T]]) -> T:
        """Do a call in a task that no caller can cancel."""
        return await _outlive(self._call(work), self._calls)

    async def close(self) -> None:
        """Let calls come to their end, and close the connections, also when the caller is cancelled meanwhile."""
        await _outlive(self._close(), set())

    async def _call(self, work: Callable[[Redis], Awaitable[T]]) -> T:
        await self._turns.take()
        try:
            async with asyncio.timeout(self._timeout):
                result = await self._follow(work)
        except BaseException:
            self.redis = self._first  # the node may have gone, and the first one knows another
            self._turns.give_back(well=False)
            raise
        self._turns.give_back(well=True)
        return result

    async def _follow(self, work: Callable[[Redis], Awaitable[T]]) -> T:
        """Do a call where its keys are; a node that does not have them has done nothing."""
        from redis.exceptions import MovedError  # noqa: PLC0415 - an extra

        for _ in range(_MOVES):
            try:
                return await self._ask(self.redis, work)
            except MovedError as moved:
                self.redis = self._node(moved.host or self._host, moved.port)
        return await self._ask(self.redis, work)

    async def _ask(self, redis: Redis, work: Callable[[Redis], Awaitable[T]]) -> T:
        """Do a call at a node, which is let go when it does not answer: it may have left the cluster."""
        from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004, PLC0415 - an extra

        try:
            return await work(redis)
        except (ConnectionError, TimeoutError, OSError, asyncio.CancelledError):
            self._leave(redis)
            raise

    def _node(self, host: str, port: int) -> Redis:
        redis = self._nodes.pop((host, port), None) or self._connect(host=host, port=port)
        self._nodes[host, port] = redis
        if len(self._nodes) > _KEPT:
            self._leave(next(iter(self._nodes.values())))
        return redis

    def _leave(self, redis: Redis) -> None:
        """Close the connections to a node, but the first, once the calls have ended that may use them."""
        others = {address: one for address, one in self._nodes.items() if one is not redis}
        if len(others) < len(self._nodes):
            self._nodes = others
            self._let_go[redis] = asyncio.Task(
                self._close_node(redis, {*self._calls}), name="alloy-redis-node"
            )
            self._let_go[redis].add_done_callback(_mark_seen)

    async def _close_node(self, redis: Redis, calls: set[asyncio.Task[Any]]) -> None:
        if calls:
            await asyncio.wait(calls)
        await redis.aclose(close_connection_pool=True)
        del self._let_go[redis]

    def _connect(self, **node: Any) -> Redis:
        from redis.asyncio import Redis  # noqa: PLC0415 - an extra

        return Redis(connection_pool=self._make_pool(**node))

    async def _close(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls)
        if self._let_go:
            await asyncio.wait(self._let_go.values())
        for redis in (self._first, *self._nodes.values(), *self._let_go):
            await redis.aclose(close_connection_pool=True)


class _Turns:
    """Lets a few calls use the wire at once; the others wait in order, for as long as there is progress.

    A bound on the waiting alone would fail the last of a great many calls although all is well.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._free = AT_ONCE
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ended_well = 0
        self._seen = 0
        self._idle = 0
        self._timer: asyncio.TimerHandle | None = None

    async def take(self) -> None:
        """Wait for a turn.

        Raises:
            TimeoutError: no call has come to a good end for ``patience`` seconds.
        """
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if self._timer is None:
            self._idle, self._seen = 0, self._ended_well
            self._look_later()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:  # it was given, and is not wanted any more
                self.give_back(well=False)
            raise

    def give_back(self, *, well: bool) -> None:
        """Let the next one go."""
        self._ended_well += well
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _look_later(self) -> None:
        """Look in several steps, so that the time in which this loop itself stands still counts as one only."""
        self._timer = asyncio.get_running_loop().call_later(self._patience / _STEPS, self._look)

    def _look(self) -> None:
        """Fail all who wait when there is no progress; one timer for all, since they may be a great many."""
        self._timer = None
        self._idle = self._idle + 1 if self._seen == self._ended_well else 0
        self._seen = self._ended_well
        while self._idle >= _STEPS and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(TimeoutError())
        if self._waiting:
            self._look_later()


async def _outlive(coroutine: Coroutine[Any, Any, T], tasks: set[asyncio.Task[Any]]) -> T:
    """Return what a coroutine returns; it goes on when the caller is cancelled.

    Not ``asyncio.shield``, which in newer versions reports an error that a cancelled caller does not wait for.
    """
    task = asyncio.Task(coroutine, name="alloy-redis")
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    task.add_done_callback(_mark_seen)
    await asyncio.wait([task])
    return task.result()


def _mark_seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


# Hearing of others


async def attend(
    link: RedisLink,
    channels: Callable[[], Collection[str]],
    look: Callable[[], Awaitable[None]],
    *,
    every: float,
) -> None:
    """Look at once when a message comes, and without one every so often; until the link is closed or it is cancelled.

    A message says only that there is something to see. It may be lost in silence, with its connection or without, so
    nothing depends on it but speed.

    Args:
        link: to the server.
        channels: names those whose messages count; asked again each time, more may come.
        look: whatever it fails with is passed over, and it is called again.
        every: seconds.
    """
    while True:
        try:
            client = await link.client()
            async with client.pubsub(ignore_subscribe_messages=True) as messages:
                await _attend(messages, channels, look, every)
        except LinkClosed:
            return
        except Exception:  # noqa: BLE001 - whatever it was: a listener that ends in silence would hear no refusal
            await asyncio.sleep(every)


async def _attend(
    messages: PubSub,
    channels: Callable[[], Collection[str]],
    look: Callable[[], Awaitable[None]],
    every: float,
) -> None:
    subscribe: Callable[..., Awaitable[object]] = messages.subscribe
    subscribed: set[str] = set()
    while True:
        _heed_cancelling()
        await look()  # before anything else, so that it is also called where nobody may subscribe
        missing = set(channels()) - subscribed
        if missing:
            await subscribe(*missing)
            subscribed |= missing
        if not subscribed:
            await asyncio.sleep(every)
            continue
        await messages.get_message(timeout=every)
        while await messages.get_message(timeout=0.0) is not None:
            pass  # one look answers them all


def _heed_cancelling() -> None:
    """End the task where its cancellation was swallowed; see ``_end``. A loop that ends cancels but once."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Script:
    """A Lua script, which Redis runs as one step: called by its digest, sent where the server does not know it yet.

    Args:
        source: the script.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._digest = sha1(source.encode(), usedforsecurity=False).hexdigest()  # what Redis calls it by

    async def __call__(
        self, redis: Redis, keys: Sequence[str], arguments: Sequence[str | bytes | int]
    ) -> Any:
        """Run it, and return its answer: bytes, int, None, or a list of them."""
        from redis.exceptions import NoScriptError  # noqa: PLC0415 - an extra

        execute: Callable[..., Awaitable[Any]] = redis.execute_command
        call = (len(keys), *keys, *arguments)
        try:
            return await execute("EVALSHA", self._digest, *call)
        except NoScriptError:
            pass
        return await execute("EVAL", self._source, *call)


# Addresses


_ADDRESS = re.compile(
    r"(?:rediss?://[^/?#]*(?:/[0-9]*)?|unix://[^/?#]*/[^?#]+)"
    r"(?:\?(?:[^=&#]+=[^&#]*)(?:&[^=&#]+=[^&#]*)*)?"
)
"""What redis-py reads in full. It passes over the rest: of a password with a slash the half would become the host."""


_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
"""Options of a URL that name a file; where it is missing redis-py says only, and at the first use, that one is."""


def _check(url: str, make_pool: Callable[[], ConnectionPool]) -> str:
    """Return where a URL leads to: host and port, or the path of a socket.

    Raises:
        ConfigurationError: it leads nowhere.
    """
    problem = "the Redis URL cannot be used; it looks like redis://host:6379/0, rediss://… or unix:///path."
    try:
        pool = make_pool()
        connect: Callable[[], object] = pool.make_connection
        connect()  # opens nothing, but refuses options that it does not know
        missing = [name for name in _FILES if not Path(pool.connection_kwargs.get(name) or "/").exists()]
        if missing:
            problem = f"the Redis URL names a file that is not there: {missing[0]}={pool.connection_kwargs[missing[0]]}"
        elif _ADDRESS.fullmatch(url):
            return _place(pool.connection_kwargs)
    except ImportError:
        problem = "Redis needs the extra redis: pip install 'alloy-async[redis]'"
    except (TypeError, ValueError, AttributeError):
        pass
    # Raised out here, without a cause: the errors of redis-py may quote the URL, and with it the password.
    raise ConfigurationError(problem)


def _place(options: dict[str, Any]) -> str:
    if "path" in options:
        return str(options["path"])
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _pool(url: str, timeout: float, **node: Any) -> ConnectionPool:
    """Return connections to where a URL leads, or to another node in the same way."""
    from redis.asyncio.connection import ConnectionPool, parse_url  # noqa: PLC0415 - an extra
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **parse_url(url)}
    if node and options.pop("path", None):  # a socket leads to one node only
        del options["connection_class"]
    return ConnectionPool(
        **options
        | {
            # Trying again is for the caller to decide: a yes that is written twice may undo a no that came between.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "decode_responses": False,
            "max_connections": 1_024,  # how many there are is decided above
        }
        | node
    )


# Names of keys


def key_prefix(organisation: str, datastream: str) -> str:
    """Return what the keys of an organisation's datastream begin with; in a cluster they lie in one slot."""
    text = f"{len(organisation)},{organisation}{datastream}"  # the length, so that no two run together
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)
    return f"alloy:{{{digest.hexdigest()}}}:"


# Errors


@cache
def failures() -> tuple[type[Exception], ...]:
    """Return what ``RedisLink.run`` may fail with, for an ``except`` clause; a TimeoutError is an OSError too."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - an extra

    return (RedisError, OSError)


def describe(error: Exception) -> str:
    """Say what is wrong and what to do about it, without a word of redis-py's: its errors may quote keys and values."""
    if isinstance(error, LinkClosed):
        return "it is closed."
    refused = next((one for one in _chain(error) if isinstance(one, SSLCertVerificationError)), None)
    if refused is not None:
        return f"its certificate is refused ({refused.verify_message}). A CA of your own belongs in the URL: ?ssl_ca_certs=/path"
    known = next(filter(None, map(_advice, _chain(error))), None)
    if known is not None:
        return known
    said = [f": {one.strerror}" for one in _chain(error) if isinstance(one, OSError) and one.strerror]
    return f"Redis cannot be used ({type(error).__name__}{''.join(said[:1])})."


def _advice(error: BaseException) -> str | None:
    code = _CODE.search(str(error))
    if code is not None:
        return _ADVICE[code.group()]
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return next((text for name, text in _KINDS.items() if name in kinds), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Return an error and what it came from: redis-py wraps some errors in more general ones."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


_FULL = "Redis is full; give it more memory (maxmemory) or free some."
_REPLICA = "the server is a replica, which takes no writes; use the address of the primary, or wait for the fail-over."
_PASSWORD = "Redis refuses the user name or the password."  # noqa: S105 - not one
_LOADING = "Redis is still loading its data; try again."

_MOVING = "the cluster is moving this key to another node; try again."
_DOWN = "the cluster is down."

_ADVICE = {
    "OOM": _FULL,
    "READONLY": _REPLICA,
    "MISCONF": "Redis cannot write to its disk, and so refuses to write at all.",
    "NOREPLICAS": "Redis has too few replicas to write.",
    "LOADING": _LOADING,
    "MASTERDOWN": "the server is a replica that has lost its primary.",
    "MOVED": "the nodes of the cluster do not agree on who has this key; try again.",
    "ASK": _MOVING,
    "TRYAGAIN": _MOVING,
    "CLUSTERDOWN": _DOWN,
    "BUSY": "Redis is busy with somebody's script.",
    "WRONGTYPE": "a key is not what it was written as; does another program use keys that begin with alloy:?",
    "NOPERM": "the user may not do that; see the list of permissions in the documentation.",
    "NOAUTH": _PASSWORD,
    "WRONGPASS": _PASSWORD,
}
"""What to say of an error code, which in an error that a script passes on stands somewhere in the text."""

_CODE = re.compile(r"\b(?:" + "|".join(_ADVICE) + r")\b")

_KINDS = {
    "OutOfMemoryError": _FULL,
    "ReadOnlyError": _REPLICA,
    "BusyLoadingError": _LOADING,
    "NoPermissionError": _ADVICE["NOPERM"],
    "AuthenticationError": _PASSWORD,
    "MovedError": _ADVICE["MOVED"],
    "AskError": _MOVING,
    "TryAgainError": _MOVING,
    "ClusterDownError": _DOWN,
    "TimeoutError": "Redis did not answer in time.",  # Python's own too
}
"""The same where redis-py has taken the code out of the text, by the names of its errors."""
