"""Consent: what a set-consent request or an event's consent string decides about collection.

The edge knows two answers, ``in`` and ``out``. Where no source says what a value does, this stand-in takes the careful
side, and the line says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .problems import Problem
from .tcf import ADOBE_VENDOR, UnreadableTCString, read_tc_string

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Choice", "ConsentMemory", "consent_string_denies", "decide", "read_consent_entry"]

Choice = Literal["in", "out"]

_STORAGE = 1
"""TCF purpose 1, "store and/or access information on a device"."""

# "pending" and "not_provided" are listed without a meaning. They are no consent, so they are out here.
_GENERAL: dict[str, Choice] = {"in": "in", "out": "out", "pending": "out", "not_provided": "out"}
# Legal bases other than consent (contract, compliance, vital, public and legitimate interest) allow collection;
# "p" (pending) and "u" (unknown) are listed without an effect on the edge, and are out here.
_COLLECT: dict[str, Choice] = {
    "y": "in", "li": "in", "ct": "in", "cp": "in", "vi": "in", "pi": "in",
    "n": "out", "p": "out", "u": "out",
}  # fmt: skip


def decide(consents: object) -> Choice | None:
    """Judge the ``consent`` list of a set-consent request.

    Of several statements one refusal is enough. None means that nothing was said about collection (an Adobe 2.0
    object without ``collect``).

    Raises:
        Problem: 0102-400, 0103-400 or 0104-422, as the edge validates each standard.

    Source: Adobe Experience Platform Edge Network API, set-consent.
    """
    if consents is None or consents == []:
        raise Problem("0103-400", "'consent' is missing or empty.")
    if not isinstance(consents, list):
        raise Problem("0102-400", "'consent' must be an array.")
    choices = {_decide_one(item, index) for index, item in enumerate(consents)}
    return "out" if "out" in choices else "in" if "in" in choices else None


def _decide_one(item: object, index: int) -> Choice | None:
    if not isinstance(item, dict):
        raise Problem("0102-400", f"consent[{index}] must be an object.")
    for name in ("standard", "version", "value"):
        if item.get(name) is None:
            raise Problem("0103-400", f"consent[{index}].{name} is missing.")
    match item["standard"], item["version"]:
        case "Adobe", "1.0":
            return _adobe_1(item["value"], index)
        case "Adobe", "2.0":
            return _adobe_2(item["value"], index)
        case "IAB TCF", "2.0":
            return _iab_tcf(item, index)
    raise Problem("0102-400", f"consent[{index}] has an unknown standard or version.")


def _adobe_1(value: object, index: int) -> Choice:
    fields = _object(value, f"consent[{index}].value")
    if fields.keys() - {"general"}:
        raise Problem("0102-400", f"consent[{index}].value takes no other purpose than 'general'.")
    if "general" not in fields:
        raise Problem("0103-400", f"consent[{index}].value.general is missing.")
    return _one_of(_GENERAL, fields["general"], f"consent[{index}].value.general")


def _adobe_2(value: object, index: int) -> Choice | None:
    fields = _object(value, f"consent[{index}].value")
    if "collect" not in fields:
        return None
    collect = _object(fields["collect"], f"consent[{index}].value.collect")
    return _one_of(_COLLECT, collect.get("val"), f"consent[{index}].value.collect.val")


def _iab_tcf(item: Mapping[str, Any], index: int) -> Choice:
    text, applies = item["value"], item.get("gdprApplies", True)
    if not isinstance(text, str) or not isinstance(applies, bool):
        raise Problem("0102-400", f"consent[{index}] needs a string value and a boolean gdprApplies.")
    if not text:
        finding = f"IAB consent string value must not be empty for standard 'IAB TCF' at index {index}"
        raise Problem("0104-422", "Invalid request (report attached).", errors=[finding])
    try:
        return _tcf_choice(text, gdpr_applies=applies)
    except UnreadableTCString as error:
        finding = f"IAB consent string value cannot be read at index {index}: {error}"
        raise Problem("0104-422", "Invalid request (report attached).", errors=[finding]) from None


def _tcf_choice(text: str, *, gdpr_applies: bool) -> Choice:
    """Ask for purpose 1 and the Adobe vendor; outside the GDPR it is ``in`` whatever the string."""
    if not gdpr_applies:
        return "in"
    return "in" if read_tc_string(text).allows(purpose=_STORAGE, vendor=ADOBE_VENDOR) else "out"


def consent_string_denies(xdm: Mapping[str, Any]) -> bool:
    """Tell whether an event carries a TC string that denies collection.

    Text that is no TC string of version 2 says nothing: real events carry old strings under the label "2.0", and an
    event is withheld for a refusal, not for an oddity.

    Source: Adobe Experience Platform Edge Network API, xdm.consentStrings of an event.
    """
    strings = xdm.get("consentStrings")
    return isinstance(strings, list) and any(_denies(item) for item in strings if isinstance(item, dict))


def _denies(item: Mapping[str, Any]) -> bool:
    text = item.get("consentStringValue")
    if item.get("consentStandard") != "IAB TCF" or not isinstance(text, str):
        return False
    try:
        return _tcf_choice(text, gdpr_applies=item.get("gdprApplies") is not False) == "out"
    except UnreadableTCString:
        return False


def read_consent_entry(value: str) -> Choice | None:
    """Read the consent cookie, ``general=in`` or ``general=out``; other purposes in it are not used."""
    for pair in value.split(";"):
        match pair.strip().partition("="):
            case "general", "=", "in":
                return "in"
            case "general", "=", "out":
                return "out"
    return None


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Problem("0102-400", f"{name} must be an object.")
    return value


def _one_of(choices: Mapping[str, Choice], value: object, name: str) -> Choice:
    if not isinstance(value, str) or value not in choices:
        raise Problem("0102-400", f"{name} must be one of {', '.join(choices)}.")
    return choices[value]


class ConsentMemory:
    """Which visitors are out; the only thing the edge keeps about consent.

    Args:
        capacity: number of visitors remembered; beyond it the longest unchanged refusal is forgotten.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._out: dict[str, None] = {}

    def save(self, ecid: str, choice: Choice) -> None:
        """Store what a visitor chose; the last choice counts."""
        self._out.pop(ecid, None)
        if choice == "out":
            self._out[ecid] = None
        if len(self._out) > self._capacity:
            del self._out[next(iter(self._out))]

    def is_out(self, ecid: str | None) -> bool:
        """Tell whether a visitor refused; one without an identity cannot have."""
        return ecid in self._out

    def clear(self) -> None:
        """Forget everyone."""
        self._out.clear()
