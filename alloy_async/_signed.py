"""A store whose changes bear the name of who makes them, so that they are known when they are heard back."""

from __future__ import annotations

import secrets
from functools import partial

from .stores.base import WatchedStore

__all__ = ["SignedStore"]


class SignedStore:
    """Keeps choices and identities under a name of its own; the rest is the store's.

    Args:
        store: tells of changes, with who made them.

    Attributes:
        name: random, and of nobody else: a forked process makes one of its own.
    """

    def __init__(self, store: WatchedStore) -> None:
        self.name = secrets.token_hex(8)
        self.save_preference = partial(store.save_preference, by=self.name)
        self.forget = partial(store.forget, by=self.name)
        self.load_preference = store.load_preference
        self.load_identity = store.load_identity
        self.save_identity = store.save_identity
        self.aclose = store.aclose
