"""What a place must do that keeps visitors' choices, and the records that cross that border."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from .._consent._rules import Choice
from ..identity import StoredIdentity

__all__ = ["Change", "Choice", "Preference", "Store", "VisitorKey", "WatchedStore"]


class VisitorKey(NamedTuple):
    """Whose choice it is.

    Attributes:
        organisation: ``ims_org_id``.
        datastream: ``config_id``.
        visitor: the application's own key; empty for the one person of a single-person process.
    """

    organisation: str
    datastream: str
    visitor: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """A visitor's choice, as it is kept.

    Attributes:
        purposes: "all" or "none".
        chosen_at: seconds since 1970.
        expires_at: seconds since 1970; from then on it counts as not made.
        source: who said it: ``opt_in``, ``cli`` or a word of the application.
        epoch: grows with each refusal and each forgetting, never shrinks; an event that was accepted under a smaller
            epoch must not be sent. 0 in a preference that is being saved: the store assigns it.
    """

    purposes: Choice
    chosen_at: float
    expires_at: float
    source: str = "opt_in"
    epoch: int = 0


class Change(NamedTuple):
    """What somebody has changed about a visitor's choice.

    Attributes:
        visitor: a digest of whose it is, as ``WatchedStore.digest`` returns it.
        refused: whether it was a refusal or a forgetting.
    """

    visitor: str
    refused: bool


class Store(Protocol):
    """Keeps one preference and one identity for each visitor.

    Every method raises ``ConsentStoreError`` and nothing else. A method that returns has done its work durably: it
    survives ``kill -9``. The conformance suite in ``alloy_async.testing`` says the same as tests.
    """

    async def load_preference(self, key: VisitorKey) -> Preference | None:
        """Return the visitor's choice; None when there is none, or when what is kept cannot be understood."""

    async def save_preference(self, key: VisitorKey, preference: Preference) -> None:
        """Keep a choice. A refusal ("none") also erases the visitor's identity, in the same step."""

    async def load_identity(self, key: VisitorKey) -> StoredIdentity | None:
        """Return the visitor's identity; None when there is none. Called only with consent."""

    async def save_identity(self, key: VisitorKey, identity: StoredIdentity) -> None:
        """Keep an identity, unless a refusal of the visitor is kept; then do nothing.

        The exception is what makes a late answer harmless: another process may have refused in the meantime.
        """

    async def forget(self, key: VisitorKey) -> None:
        """Erase the visitor's choice and identity."""

    async def aclose(self) -> None:
        """Release files and connections; harmless when called twice."""


class WatchedStore(Store, Protocol):
    """A store that tells what others change, so that a choice holds in every process soon after it was made in one."""

    def watch(self, heard: Callable[[Sequence[Change] | None], object]) -> None:
        """Begin to tell of changes, in the event loop that runs, until ``aclose``.

        Args:
            heard: called in that loop with what was saved or forgotten, by whatever process, oldest first; one's own
                changes may be among it. Called with None when changes may have been missed, and once in the beginning.
        """
        ...

    def digest(self, key: VisitorKey) -> str:
        """Return the name by which changes speak of a visitor."""
        ...
