"""Names that Adobe gives a meaning to: event types and identity namespaces."""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache

__all__ = ["EVENT_TYPES", "NAMESPACES", "nearest"]

_MAX_NAME = 80
"""Characters of a name that is compared: names of fields and types are shorter, and comparing grows with the square."""


def _types(prefix: str, names: str) -> frozenset[str]:
    return frozenset(f"{prefix}.{name}" for name in names.split())


EVENT_TYPES: frozenset[str] = frozenset().union(
    _types(
        "advertising",
        "clicks completes conversions federated firstQuartiles impressions midpoints starts thirdQuartiles timePlayed",
    ),
    _types("application", "close launch"),
    _types(
        "commerce",
        "backofficeCreditMemoIssued backofficeOrderCancelled backofficeOrderItemsShipped backofficeOrderPlaced"
        " backofficeShipmentCompleted checkouts productListAdds productListOpens productListRemovals"
        " productListReopens productListViews productViews purchases saveForLaters",
    ),
    _types(
        "decisioning",
        "propositionDismiss propositionDisplay propositionFetch propositionInteract propositionSend propositionTrigger",
    ),
    _types("delivery", "feedback"),
    _types(
        "directMarketing",
        "emailBounced emailBouncedSoft emailClicked emailDelivered emailOpened emailSent emailUnsubscribed",
    ),
    _types("inappmessageTracking", "dismiss display interact"),
    _types(
        "leadOperation",
        "addToCampaign callWebhook changeCampaignStream changeEngagementCampaignCadence convertLead"
        " interestingMoment mergeLeads newLead revenueStageChanged scoreChanged statusInCampaignProgressionChanged",
    ),
    _types("listOperation", "addToList removeFromList"),
    _types("location", "entry exit"),
    _types(
        "media",
        "adBreakComplete adBreakStart adComplete adSkip adStart bitrateChange bufferStart chapterComplete chapterSkip"
        " chapterStart downloaded error pauseStart ping play sessionComplete sessionEnd sessionStart statesUpdate",
    ),
    _types("media.reporting", "adClose adStart chapterClose sessionClose sessionStart"),
    _types("message", "feedback tracking"),
    _types("opportunityEvent", "addToOpportunity opportunityUpdated removeFromOpportunity"),
    _types("pushTracking", "applicationOpened customAction"),
    _types("userAccount", "login"),
    _types(
        "web",
        "formFilledOut webinteraction.contentDisplay webinteraction.linkClicks webpagedetails.pageViews",
    ),
)
"""Event types that Adobe's products recognise; any other text is legal.

Source: adobe/xdm, suggested values of ``eventType`` in the time-series behavior; adobe/alloy, media events."""

NAMESPACES: frozenset[str] = frozenset({"CORE", "CRMID", "ECID", "Email", "Email_LC_SHA256", "FPID", "Phone"})
"""Codes of identity namespaces that are in wide use; an organisation may have its own.

Source: Adobe Experience Platform Identity Service, standard namespaces; CRMID is the custom one of its examples."""


def nearest(name: str, known: frozenset[str], likeness: float) -> str | None:
    """Find the known name that somebody probably meant; None when it is known itself, or like no other.

    Args:
        name: a name out of an event, of any length.
        known: the names that would be right.
        likeness: how much alike, 0 to 1; names that differ in case only always are.
    """
    return None if name in known or not 2 <= len(name) <= _MAX_NAME else _nearest(name, known, likeness)


@lru_cache(maxsize=1024)  # comparing takes up to a millisecond, and the same names come with every event
def _nearest(name: str, known: frozenset[str], likeness: float) -> str | None:
    folded = name.casefold()
    for other in known:
        if other.casefold() == folded:
            return other
    # Sorted: a set has another order in each process, and of two names equally near always the same shall be named.
    return next(iter(get_close_matches(name, sorted(known), n=1, cutoff=likeness)), None)
