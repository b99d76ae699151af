"""All visitors of an engine: one state for each key, for as long as anything of it is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from weakref import WeakValueDictionary

from ._clock import Clock
from ._visitor import VisitorState
from .stores.base import VisitorKey

__all__ = ["Visitors"]

LET_GO_AT_ONCE = 2
"""Visitors that are let go for each one that comes, so that letting go never takes long."""


class Visitors:
    """Finds the state of a visitor by key, and lets those go that were not heard of for long.

    Whoever has a state in hand, a view or an event that is under way, keeps it alive; so two states of one key never
    exist side by side. What is kept here beyond that spares reading the choice and the identity again.

    Args:
        make: makes the state of a visitor who is not known.
        most: how many are kept.
        idle: seconds after which one that is settled is let go.
        clock: where time comes from.
        digest: names a visitor without giving the key away, so that others can speak of one; None: nobody does.
    """

    def __init__(
        self,
        make: Callable[[str], VisitorState],
        *,
        most: int,
        idle: float,
        clock: Clock,
        digest: Callable[[VisitorKey], str] | None = None,
    ) -> None:
        self._make = make
        self._digest = digest
        self._by_digest: WeakValueDictionary[str, VisitorState] = WeakValueDictionary()
        self._most = most
        self._idle = idle
        self._clock = clock
        self._kept: OrderedDict[str, VisitorState] = OrderedDict()
        self._let_go: WeakValueDictionary[str, VisitorState] = WeakValueDictionary()

    def get(self, key: str) -> VisitorState:
        """Return the state of a visitor."""
        now = self._clock.monotonic()
        state = self._kept.get(key)
        if state is not None:
            self._kept.move_to_end(key)
        else:
            state = self._kept[key] = self._let_go.get(key) or self._make(key)
            self._let_go.pop(key, state)
            if self._digest is not None:
                self._by_digest[self._digest(state.key)] = state
        state.used_at = now
        self._make_room(now)
        return state

    def known(self, key: str) -> VisitorState | None:
        """Return the state of a visitor, if there is one."""
        return self._kept.get(key) or self._let_go.get(key)

    def by_digest(self, digest: str) -> VisitorState | None:
        """Return the state of the visitor whom others call by this digest, if there is one."""
        return self._by_digest.get(digest)

    def __iter__(self) -> Iterator[VisitorState]:
        """Yield all states that there are."""
        return chain(list(self._kept.values()), list(self._let_go.values()))

    def __len__(self) -> int:
        """Return how many states there are."""
        return len(self._kept) + len(self._let_go)

    def _make_room(self, now: float) -> None:
        for _ in range(LET_GO_AT_ONCE):
            key, oldest = next(iter(self._kept.items()))
            if len(self._kept) <= self._most and now - oldest.used_at < self._idle:
                return
            if oldest.is_settled:
                self._let_go[key] = self._kept.pop(key)
            else:  # it is looked at again after all others
                oldest.used_at = now
                self._kept.move_to_end(key)
