"""What a place must do that keeps visitors' choices, and the records that cross that border."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, Protocol, TypeAlias

from .._consent._rules import Choice
from ..identity import StoredIdentity

__all__ = [
    "Change",
    "Choice",
    "Heard",
    "Preference",
    "Store",
    "VisitorKey",
    "WatchedStore",
    "consents_since",
    "tell",
    "visitor_digest",
]

_logger = logging.getLogger("alloy_async")


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


def visitor_digest(visitor: VisitorKey) -> str:
    """Return a digest of a visitor's key, 32 hex digits, for places where nobody's name may stand.

    It is of the lengths too, so that no two keys run together.
    """
    digest = _digest_of_instance(visitor.organisation, visitor.datastream).copy()
    digest.update(visitor.visitor.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@lru_cache(maxsize=64)  # asked for with each view of a visitor, and there are few instances
def _digest_of_instance(organisation: str, datastream: str) -> blake2b:
    text = f"{len(organisation)},{len(datastream)},{organisation}{datastream}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16)


@dataclass(frozen=True, slots=True)
class Preference:
    """A visitor's choice, as it is kept.

    Attributes:
        purposes: "all" or "none".
        chosen_at: seconds since 1970.
        expires_at: seconds since 1970; from then on it counts as not made.
        source: who said it: ``opt_in``, ``cli`` or a word of the application.
        epoch: grows with each refusal and each forgetting, never shrinks; an event that was accepted under a smaller
            epoch must not be sent.
        consents_since: seconds since 1970 of the first yes after the newest refusal, of a refusal its own time; what was
            accepted before that must not be sent. 0 where the visitor is not known to have ever refused.

    The store assigns ``epoch`` and ``consents_since``; in a preference that is being saved they count for nothing.
    """

    purposes: Choice
    chosen_at: float
    expires_at: float
    source: str = "opt_in"
    epoch: int = 0
    consents_since: float = 0.0


def consents_since(kept: Preference | None, chosen: Preference) -> float:
    """Return since when a visitor consents, for a store to keep.

    Args:
        kept: what is kept until now.
        chosen: what is to be kept.
    """
    before = 0.0 if kept is None else kept.consents_since
    goes_on = chosen.purposes == "all" and (kept is None or kept.purposes == "all")
    return before if goes_on else max(before, chosen.chosen_at)  # the clocks of two machines may differ


class Change(NamedTuple):
    """What somebody has changed about a visitor's choice.

    Attributes:
        visitor: a digest of whose it is, as ``WatchedStore.digest`` returns it.
        refused: whether it was a refusal or a forgetting.
        by: who changed it, in the words of ``WatchedStore.save_preference`` and ``forget``.
    """

    visitor: str
    refused: bool
    by: str = ""


Heard: TypeAlias = Callable[[Sequence[Change] | None], object]
"""Hears of changes, oldest first; None: any of it may have changed, and nobody knows how."""


def tell(listeners: Sequence[Heard], changes: Sequence[Change] | None) -> None:
    """Tell listeners of changes; one that raises is said in the log, without what it raised, and harms no other."""
    for heard in listeners:
        try:
            heard(changes)
        except Exception as error:  # noqa: BLE001 - somebody else's
            _logger.error("a listener to the store raised %s", type(error).__name__)


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
    """A store that tells what others change, so that a choice holds in every process soon after it was made in one.

    One's own changes are told too. An instance knows them by the name under which it made them: not by their number,
    since of choices that overlap not each is written, and one whose answer was lost is written twice.
    """

    async def save_preference(self, key: VisitorKey, preference: Preference, *, by: str = "") -> None:
        """Keep a choice, as ``Store`` says.

        Args:
            key: whose choice it is.
            preference: the choice.
            by: the name of who makes the change, for ``Change.by``; an instance's is random, and says nothing of anybody.
        """

    async def forget(self, key: VisitorKey, *, by: str = "") -> None:
        """Erase the visitor's choice and identity; ``by`` as above."""

    def watch(self, heard: Heard) -> None:
        """Begin to tell of changes, in the event loop that runs, until ``aclose``.

        Args:
            heard: called in that loop with what was saved or forgotten, by whatever process, oldest first; one's own
                changes may be among it. Called with None when changes may have been missed since the store was first
                used, or since this was called.
        """
        ...

    def digest(self, key: VisitorKey) -> str:
        """Return the name by which changes speak of a visitor."""
        ...
