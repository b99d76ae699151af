"""Choices and identities in Redis or Valkey, for processes on several machines; needs the extra ``redis``.

What is kept. Each visitor has one hash, which holds the choice and the identity, so that they come and go together.
Redis erases it by itself when the choice expires. Names of keys hold digests, never a visitor's own key.

What is told. Each change adds an entry to a stream in the same step. An entry names the one before it, and a hash names
the last one: whoever has read up to an entry sees whether the chain goes on from there, or whether something is missing
because it was trimmed, or because the server lost it in a fail-over. A message says that there is an entry; it may be
lost, and is then made good by looking.

Each change is a Lua script, which is one step for Redis. It looks before it changes anything, and erases before it
writes: a script that fails half-way is not undone, and a server that is full refuses to write, but not after erasing.
So a refusal can be kept by a full server too.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from .._consent._rules import Choice
from .._json import encode
from .._redis import LinkClosed, RedisLink, Script, attend, describe, failures, key_prefix
from ..errors import ConsentStoreError
from ..identity import StoredIdentity, read_stored
from .base import Change, Heard, Preference, VisitorKey, tell, visitor_digest

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisStore"]

T = TypeVar("T")

LOOK_EVERY = 0.5
"""Seconds after which others' changes are looked for, where no message told of them."""

_PAGE = 1_000
"""Changes that are read at once."""

_ENTRIES = 10_000
"""Changes that are remembered, about. A process that has not looked for longer is told to read everything again."""

_REMEMBERED = 3_600
"""Seconds after the last change in which changes are remembered: they hold visitors' digests."""

_LONGEST_LIFE = 10**14
"""Milliseconds, 3 000 years: what Redis takes for a moment is bounded."""

_CHANGED = f"""
local function changed(refused)
    local before = redis.call('HGET', KEYS[2], 'last') or ''
    local entry = redis.call('XADD', KEYS[3], 'MAXLEN', '~', {_ENTRIES}, '*',
        'visitor', ARGV[1], 'refused', refused, 'by', ARGV[2], 'before', before)
    redis.call('EXPIRE', KEYS[3], {_REMEMBERED})
    redis.call('HSET', KEYS[2], 'last', entry)
    redis.pcall('PUBLISH', KEYS[3], entry)  -- who may not publish is heard a little later
end
local function counted(found)  -- nil for what is missing or is no number of ours
    if type(found) == 'string' and #found < 16 and string.find(found, '^%d+$') then return tonumber(found) end
end
local own = counted(redis.pcall('HGET', KEYS[1], 'epoch'))
local common = counted(redis.call('HGET', KEYS[2], 'epoch')) or 0
redis.call('XLEN', KEYS[3])  -- fails now, where the key is not ours
"""
"""The beginning of each script. Keys: the visitor, the instance, its changes. First arguments: the visitor's digest, and who
makes the change."""

_FIELDS = "'purposes', ARGV[3], 'chosen_at', ARGV[4], 'expires_at', ARGV[5], 'source', ARGV[6]"

_SINCE = """
local function since(chosen)  -- as the function consents_since has it
    local kept = redis.pcall('HMGET', KEYS[1], 'purposes', 'consents_since')
    if kept.err then kept = {} end  -- not ours: a refusal takes its place
    local before = string.find(kept[2] or '', '^%d+%.%d+$') and kept[2] or '0.0'
    local goes_on = chosen == 'all' and kept[1] ~= 'none'
    return (goes_on or tonumber(before) > tonumber(ARGV[4])) and before or ARGV[4]
end
"""

_SAVE_ALL = Script(f"""{_CHANGED}{_SINCE}
-- A visitor's own epoch stays. Where there is none the common one: who was forgotten does not begin again at zero.
redis.call('HSET', KEYS[1], {_FIELDS}, 'epoch', string.format('%d', own or common), 'consents_since', since('all'))
redis.call('PEXPIRE', KEYS[1], ARGV[7])
changed('no')
""")

_ERASE = """
local epoch = string.format('%d', math.max(own or 0, common) + 1)  -- own: of a server that has lost the common one
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[2], 'epoch', epoch)
"""

_FORGET = Script(f"""{_CHANGED}{_ERASE}
changed('yes')
""")

_SAVE_NONE = Script(f"""{_CHANGED}{_SINCE}
local refused_at = since('none')
{_ERASE}
redis.call('HSET', KEYS[1], {_FIELDS}, 'epoch', epoch, 'consents_since', refused_at)
redis.call('PEXPIRE', KEYS[1], ARGV[7])
changed('yes')
""")

_SAVE_IDENTITY = Script("""
if redis.call('HGET', KEYS[1], 'purposes') == 'none' then return end
redis.call('HSET', KEYS[1], 'fpid', ARGV[2], 'customer_ids', ARGV[3])
if ARGV[4] then redis.call('HSET', KEYS[1], 'ecid', ARGV[4]) else redis.call('HDEL', KEYS[1], 'ecid') end
""")

_PREFERENCE = ("purposes", "chosen_at", "expires_at", "source", "epoch", "consents_since")

_IDENTITY = ("fpid", "ecid", "customer_ids")

_CHOICES: dict[bytes | None, Choice] = {b"all": "all", b"none": "none"}
"""Exactly what is written, no other case."""

_logger = logging.getLogger("alloy_async")


class RedisStore:
    """A store in Redis or Valkey, 6.2 or newer, that processes on several machines may share.

    It belongs to whoever made it: ``aclose`` of an ``Alloy`` leaves it open.

    Args:
        url: ``redis://``, ``rediss://`` (with TLS) or ``unix://``, with user, password and options as redis-py takes
            them.
        timeout: seconds that a call may take.

    Raises:
        ConfigurationError: the URL cannot be used, or redis-py is not installed.
    """

    def __init__(self, url: str, *, timeout: float = 2.0) -> None:
        self._link = RedisLink(url, timeout=timeout)
        self._place = f"Redis at {self._link.place}"
        self._prefixes: set[str] = set()
        self._news: _News | None = None

    def __repr__(self) -> str:
        return f"RedisStore({self._link.place!r})"

    async def load_preference(self, key: VisitorKey) -> Preference | None:
        """Return the visitor's choice; None when there is none, or when it cannot be understood."""
        row = await self._load(key, _PREFERENCE)
        if row.count(None) == len(row):
            return None
        preference = _read_preference(*row)
        if preference is None:
            _logger.warning("%s: the stored choice cannot be understood; it counts as not made", self._place)
        return preference

    async def save_preference(self, key: VisitorKey, preference: Preference, *, by: str = "") -> None:
        """Keep a choice; a refusal erases the identity in the same step."""
        script = _SAVE_NONE if preference.purposes == "none" else _SAVE_ALL
        await self._change("save", key, script, lambda: [by.encode(), *_write_preference(preference)])

    async def load_identity(self, key: VisitorKey) -> StoredIdentity | None:
        """Return the visitor's identity, or None."""
        return read_stored(*map(_text, await self._load(key, _IDENTITY)))

    async def save_identity(self, key: VisitorKey, identity: StoredIdentity) -> None:
        """Keep an identity, unless a refusal is kept."""
        await self._change("save", key, _SAVE_IDENTITY, lambda: _write_identity(identity))

    async def forget(self, key: VisitorKey, *, by: str = "") -> None:
        """Erase the visitor's choice and identity."""
        await self._change("forget", key, _FORGET, lambda: [by.encode()])

    def watch(self, heard: Callable[[Sequence[Change] | None], object]) -> None:
        """Begin to tell of changes, in the event loop that runs, until ``aclose``; see ``WatchedStore``.

        They come within milliseconds, and where messages get lost within a second. In another loop, or in a forked
        process, call it again.

        Args:
            heard: called in that loop with what was saved or forgotten, oldest first. Called with None when changes may
                have been missed: once for each instance, when listening to it has begun, or soon where it had; after
                Redis was out of reach; and where the list of changes has a hole. Then everything is to be read again.
        """
        if self._news is None or self._news.loop is not asyncio.get_running_loop():
            self._news = _News(self._link, self._place, self._prefixes)
            self._link.start(self._news.listen(), "alloy-redis-news")
        self._news.join(heard)

    @staticmethod
    def digest(key: VisitorKey) -> str:
        """Return the name by which changes speak of a visitor, 32 hex digits."""
        return visitor_digest(key)

    async def aclose(self) -> None:
        """Close the connections and end what runs in the background."""
        await self._link.aclose()

    async def _load(self, key: VisitorKey, names: Sequence[str]) -> list[bytes | None]:
        keys = self._keys(key)
        cells = await self._run("load", lambda redis: redis.hmget(keys.visitor, names))
        return cast("list[bytes | None]", cells)

    async def _change(
        self, action: str, key: VisitorKey, script: Script, write: Callable[[], list[bytes]]
    ) -> None:
        keys = self._keys(key)
        try:
            arguments = [visitor_digest(key).encode(), *write()]
        except (ValueError, OverflowError):
            pass  # raised below, outside: the errors hold what cannot be written
        else:
            await self._run(action, lambda redis: script(redis, keys, arguments))
            return
        raise ConsentStoreError(action, self._place, "it holds text or times that cannot be written.")

    async def _run(self, action: str, work: Callable[[Redis], Awaitable[T]]) -> T:
        try:
            return await self._link.run(work)
        except failures() as error:
            problem = describe(error)
        # Raised out here, without a cause: the errors of redis-py may quote what was sent.
        raise ConsentStoreError(action, self._place, problem)

    def _keys(self, key: VisitorKey) -> _Keys:
        """Return a visitor's keys, and remember the instance, whose changes are listened to."""
        prefix = key_prefix(key.organisation, key.datastream)
        self._prefixes.add(prefix)
        return _Keys(f"{prefix}choice:{visitor_digest(key)}", f"{prefix}choices", f"{prefix}news")


class _Keys(NamedTuple):
    """Keys of a visitor, as the scripts take them."""

    visitor: str
    instance: str
    news: str


class _News:
    """Listens to the changes of instances, in one event loop.

    Args:
        link: to the server.
        place: what the server is called in the log.
        prefixes: of the instances; more may come.
    """

    def __init__(self, link: RedisLink, place: str, prefixes: set[str]) -> None:
        self.loop = asyncio.get_running_loop()
        self._listeners: list[Heard] = []
        self._link = link
        self._place = place
        self._prefixes = prefixes
        self._read_up_to: dict[str, bytes] = {}
        self._lost = False
        self._has_told = False

    def join(self, heard: Heard) -> None:
        """Add a listener; one that comes late does not know what was told before."""
        self._listeners.append(heard)
        if self._has_told:
            self.loop.call_soon(tell, [heard], None)

    async def listen(self) -> None:
        """Listen until the link is closed."""
        await attend(self._link, self._channels, self._look, every=LOOK_EVERY)

    def _channels(self) -> list[str]:
        return [f"{prefix}news" for prefix in self._prefixes]

    async def _look(self) -> None:
        """Tell what is new; say once when the server is out of reach, and once when it is back."""
        try:
            changes = await self._read()
        except LinkClosed:
            raise
        except Exception as error:
            self._lose(describe(error))
            raise
        if self._lost:
            self._lost = False
            changes = None
            _logger.warning("%s: within reach again; choices are read again", self._place)
        if changes is None or changes:
            self._has_told = True
            tell([*self._listeners], changes)

    def _lose(self, problem: str) -> None:
        if not self._lost:
            self._lost = True
            _logger.warning("%s: choices that others make are not heard for now: %s", self._place, problem)

    async def _read(self) -> list[Change] | None:
        """Return whose choices have changed; None when it may be anybody's."""
        # One call for each: in a cluster they may lie in different nodes.
        found = [await self._link.run(partial(self._follow, prefix)) for prefix in list(self._prefixes)]
        if None in found:
            return None
        return [change for changes in found for change in changes or ()]

    async def _follow(self, prefix: str, redis: Redis) -> list[Change] | None:
        last = cast("bytes | None", await redis.hget(f"{prefix}choices", "last"))
        newest, read_up_to = last or b"", self._read_up_to.get(prefix)
        changes = None
        if read_up_to is None:
            self._read_up_to[prefix] = newest
        else:
            changes, self._read_up_to[prefix] = await _follow(redis, f"{prefix}news", read_up_to, newest)
        return changes


async def _follow(
    redis: Redis, stream: str, read_up_to: bytes, newest: bytes
) -> tuple[list[Change] | None, bytes]:
    """Read changes as far as each entry names the one before it, and return them and the last one's name.

    Args:
        redis: the client.
        stream: where the changes are.
        read_up_to: the entry that was read last.
        newest: the last entry that there is; others may come meanwhile.

    Returns:
        The changes; None when something is missing between the two.
    """
    changes: list[Change] = []
    while read_up_to != newest:
        found = await redis.xrange(stream, min=b"(" + read_up_to if read_up_to else "-", count=_PAGE)
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", found)
        if not entries or entries[0][1].get(b"before") != read_up_to:
            return None, newest
        changes += [_read_change(fields) for _, fields in entries]
        read_up_to = entries[-1][0]
        if len(entries) < _PAGE:
            break  # perhaps beyond what was the newest
    return changes, read_up_to


# Cells


def _text(cell: bytes | None) -> object:
    """Return a cell as text; None where there is none, and the bytes themselves where they are not text."""
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return cell


def _read_preference(
    purposes: bytes | None,
    chosen_at: bytes | None,
    expires_at: bytes | None,
    source: bytes | None,
    epoch: bytes | None,
    consents_since: bytes | None,
) -> Preference | None:
    """Read cells strictly: whatever is not exactly what was written, counts as no choice."""
    choice, word = _CHOICES.get(purposes), _text(source)
    since, until, number = _number(chosen_at), _number(expires_at), _number(epoch)
    consents = 0.0 if consents_since is None else _number(consents_since)
    if choice is None or not isinstance(word, str) or not isinstance(number, int):
        return None
    if not isinstance(since, float) or not isinstance(until, float) or not 0 <= since <= until < math.inf:
        return None
    if not isinstance(consents, float) or not 0 <= consents < math.inf:
        return None
    return Preference(choice, since, until, word, number, consents)


def _read_change(fields: dict[bytes, bytes]) -> Change:
    digest, by = (fields.get(name, b"").decode("utf-8", "replace") for name in (b"visitor", b"by"))
    return Change(digest, refused=fields.get(b"refused") != b"no", by=by)  # in doubt it was one


def _number(cell: bytes | None) -> float | int | None:
    """Read a number in the one way in which it is written: ``1`` or ``1.0``, not ``+1``, ``1_0`` or ``01``."""
    text = _text(cell)
    for kind in (int, float):
        try:
            number = kind(str(text))
        except ValueError:
            continue
        if repr(number) == text:
            return number
    return None


def _write_preference(preference: Preference) -> list[bytes]:
    since, until = float(preference.chosen_at), float(preference.expires_at)
    # By duration, not by date: the clocks of two machines differ, and a test may bring one of its own.
    life = min(max(math.ceil((until - since) * 1_000), 1), _LONGEST_LIFE)
    cells = (preference.purposes, repr(since), repr(until), preference.source, str(life))
    return [cell.encode() for cell in cells]


def _write_identity(identity: StoredIdentity) -> list[bytes]:
    ecid = [] if identity.ecid is None else [identity.ecid.encode()]
    return [identity.fpid.encode(), encode(identity.copy().customer_ids), *ecid]
