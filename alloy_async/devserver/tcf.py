"""TC strings (IAB TCF 2): enough of them to know whether Adobe may collect."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

__all__ = ["ADOBE_VENDOR", "UnreadableTCString", "VendorConsent", "read_tc_string"]

ADOBE_VENDOR = 565
"""Adobe's number in the IAB's Global Vendor List."""

# Where the fields of the core segment stand, in bits.
# Source: IAB Tech Lab, Transparency and Consent String with Global Vendor and CMP List Formats v2, core string.
_VERSION = (0, 6)
_PURPOSES_CONSENT_AT = 152
_PURPOSES = 24
_MAX_VENDOR_ID = (213, 16)
_IS_RANGE_ENCODING = (229, 1)
_VENDORS_AT = 230

_BASE64URL = re.compile("[A-Za-z0-9_-]*")


class UnreadableTCString(ValueError):
    """Text that is not a TC string of version 2."""


@dataclass(frozen=True, slots=True)
class VendorConsent:
    """What a TC string says about consent; legitimate interests are not read.

    Attributes:
        purposes: numbers of the purposes consented to, 1 to 24.
        vendors: numbers of the vendors consented to, as ranges with both ends included.
    """

    purposes: frozenset[int]
    vendors: tuple[range, ...]

    def allows(self, *, purpose: int, vendor: int) -> bool:
        """Tell whether both the purpose and the vendor have consent."""
        return purpose in self.purposes and any(vendor in numbers for numbers in self.vendors)


def read_tc_string(text: str) -> VendorConsent:
    """Read the core segment of a TC string; other segments are left alone.

    Raises:
        UnreadableTCString: not base64url, too short for what it announces, or another version than 2.
    """
    bits = _Bits(text.partition(".")[0])
    if bits.number(*_VERSION) != 2:
        raise UnreadableTCString("the string is not of version 2")
    purposes = {n for n in range(1, _PURPOSES + 1) if bits.number(_PURPOSES_CONSENT_AT + n - 1, 1)}
    return VendorConsent(frozenset(purposes), _vendors(bits))


def _vendors(bits: _Bits) -> tuple[range, ...]:
    if bits.number(*_IS_RANGE_ENCODING):
        return _vendor_ranges(bits)
    highest = bits.number(*_MAX_VENDOR_ID)
    # Vendor 1 is the leftmost bit.
    field = f"{bits.number(_VENDORS_AT, highest):0{highest}b}"
    return tuple(range(vendor, vendor + 1) for vendor, bit in enumerate(field, 1) if bit == "1")


def _vendor_ranges(bits: _Bits) -> tuple[range, ...]:
    """Read entries of one bit (a range?), a first number, and a last number if it is a range."""
    ranges = []
    at = _VENDORS_AT + 12
    for _ in range(bits.number(_VENDORS_AT, 12)):
        is_range, first = bits.number(at, 1), bits.number(at + 1, 16)
        last = bits.number(at + 17, 16) if is_range else first
        ranges.append(range(first, last + 1))
        at += 33 if is_range else 17
    return tuple(ranges)


class _Bits:
    """Big-endian numbers of any width, out of base64url text without padding."""

    def __init__(self, text: str) -> None:
        # The decoder would pass over foreign characters, and take those of the other alphabet.
        if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
            raise UnreadableTCString("the string is not base64url")
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        self._value = int.from_bytes(raw, "big")
        self._length = len(raw) * 8

    def number(self, start: int, width: int) -> int:
        end = start + width
        if end > self._length:
            raise UnreadableTCString("the string ends too early")
        return self._value >> (self._length - end) & ((1 << width) - 1)
