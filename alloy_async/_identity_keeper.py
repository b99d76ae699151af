"""Keeping who a visitor is, and putting it into events; all of it only with consent."""

from __future__ import annotations

from ._commands import EventCommand
from ._consent._opt_in import OptInState
from ._consent._rules import Verdict
from ._event import with_identity
from ._household import Household
from ._preference import describe_store_error
from .edge.protocol import Reply
from .identity import Identity, StoredIdentity
from .stores.base import Store, VisitorKey

__all__ = ["IdentityKeeper"]

HINT_AGE = 1_800
"""Seconds that a region holds which the browser names. Source: Edge Network, the cookie ``kndctr_…_cluster``."""


class IdentityKeeper:
    """Reads the identity of one visitor, or makes one; keeps what becomes known of it.

    Args:
        key: whose it is.
        household: what all visitors share.
        store: where it is kept.
        gate: the visitor's gate.

    Attributes:
        identity: as far as it is known here and now.
    """

    __slots__ = ("_gate", "_given", "_household", "_key", "_may_keep", "_store", "identity")

    def __init__(self, key: VisitorKey, household: Household, store: Store, gate: OptInState) -> None:
        self.identity = Identity()
        self._key = key
        self._household = household
        self._store = store
        self._gate = gate
        self._given: tuple[str | None, str | None] = (None, None)
        self._may_keep = True

    def meet(self, fpid: str | None, ecid: str | None) -> None:
        """Take note of who the visitor's browser says they are; believed once there is consent, where nothing is known."""
        self._given = (fpid, ecid)

    def meet_hint(self, hint: str | None) -> None:
        """Take note of the region that the visitor's browser names."""
        if hint is not None:
            self.identity.learn_hint(hint, HINT_AGE, self._household.clock.monotonic())

    def erase(self) -> None:
        """Forget everything: the visitor has declined."""
        self.identity.erase()
        self._given = (None, None)

    def put_into(self, command: EventCommand) -> bool:
        """Put the identity into an event; return False when it has become too large, and has ended."""
        if not command.names_person:
            body = with_identity(command.body, self.identity.identity_map())
            if not command.change_body(body, self._household.event_room):
                return False
        command.prepared = True
        return True

    def learn(self, reply: Reply) -> bool:
        """Take from an answer who the visitor is and which region serves them; return whether it is news to be kept."""
        for item in reply.payload("locationHint:result"):
            if isinstance(item, dict) and item.get("scope") == "EdgeNetwork":
                now = self._household.clock.monotonic()
                self.identity.learn_hint(item.get("hint"), item.get("ttlSeconds"), now)
        news = [self.identity.learn_ecid(ecid) for ecid in _ecids(reply)]
        return any(news)

    async def ensure(self) -> None:
        """Read the identity that is kept, or make one and keep it before it is used.

        Kept first, because an FPID that was sent and then lost would give the visitor a second identity.
        """
        if self.identity.fpid is not None or not self._gate.is_opted_in:
            return  # consent may have gone since the task was made that asks for it
        epoch = self._gate.epoch
        try:
            stored = await self._store.load_identity(self._key)
        except Exception as error:  # noqa: BLE001 - a store of somebody else's may raise what it should not
            problem = describe_store_error(error)
            self._household.logger.warning("%s; going on with an identity for this run", problem)
            self._may_keep = False  # what is kept may be fine, and must not be written over
            stored = None
        if self._gate.verdict(epoch) is not Verdict.PASS or self.identity.fpid is not None:
            return  # consent has gone, or somebody else was faster
        fpid, ecid = self._given
        self.identity.adopt(stored or StoredIdentity(fpid or self._household.ids(), ecid, {}))
        self.identity.learn_ecid(ecid)  # the browser's own is news to what was kept
        if stored is None:
            await self.save()

    async def save(self) -> None:
        """Keep what is known now, while there is consent."""
        if self.identity.fpid is None or not self._may_keep or not self._gate.is_opted_in:
            return
        try:
            await self._store.save_identity(self._key, self.identity.snapshot())
        except Exception as error:  # noqa: BLE001 - as above
            problem = describe_store_error(error)
            self._household.logger.warning("%s; the identity holds until the process ends", problem)


def _ecids(reply: Reply) -> list[object]:
    """Source: Edge Network, identity:result: ``{"id", "namespace": {"code"}}``."""
    return [
        item.get("id")
        for item in reply.payload("identity:result")
        if isinstance(item, dict)
        and isinstance(item.get("namespace"), dict)
        and item["namespace"].get("code") == "ECID"
    ]
