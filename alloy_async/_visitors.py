"""All visitors of an engine: one state for each key, for as long as anything of it is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from weakref import WeakValueDictionary

from ._clock import Clock
from ._visitor import VisitorState

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
        digest: names a visitor without giving the key away, so that others can speak of one; None: nobody does. Then
            visitors are kept by their digests: a second index would cost more than making one for each view.
    """

    def __init__(
        self,
        make: Callable[[str], VisitorState],
        *,
        most: int,
        idle: float,
        clock: Clock,
        digest: Callable[[str], str] | None = None,
    ) -> None:
        self._make = make
        self._name = _key_itself if digest is None else digest
        self._most = most
        self._idle = idle
        self._clock = clock
        self._kept: OrderedDict[str, VisitorState] = OrderedDict()
        self._let_go: WeakValueDictionary[str, VisitorState] = WeakValueDictionary()

    def get(self, key: str) -> VisitorState:
        """Return the state of a visitor."""
        now = self._clock.monotonic()
        name = self._name(key)
        state = self._kept.get(name)
        if state is not None:
            self._kept.move_to_end(name)
        else:
            state = self._kept[name] = self._come_back(name) or self._make(key)
        state.used_at = now
        self._make_room(now)
        return state

    def known(self, key: str) -> VisitorState | None:
        """Return the state of a visitor, if there is one."""
        return self.named(self._name(key))

    def named(self, name: str) -> VisitorState | None:
        """Return the state of the visitor whom others call by this digest, if there is one."""
        return self._kept.get(name) or self._let_go.get(name)

    def __iter__(self) -> Iterator[VisitorState]:
        """Yield all states that there are."""
        return chain(list(self._kept.values()), list(self._let_go.values()))

    def __len__(self) -> int:
        """Return how many states there are."""
        return len(self._kept) + len(self._let_go)

    def _come_back(self, name: str) -> VisitorState | None:
        state = self._let_go.get(name)
        if state is not None:
            del self._let_go[name]
        return state

    def _make_room(self, now: float) -> None:
        for _ in range(LET_GO_AT_ONCE):
            name, oldest = next(iter(self._kept.items()))
            if len(self._kept) <= self._most and now - oldest.used_at < self._idle:
                return
            if oldest.is_settled:
                self._let_go[name] = self._kept.pop(name)
            else:  # it is looked at again after all others
                oldest.used_at = now
                self._kept.move_to_end(name)


def _key_itself(key: str) -> str:
    return key
