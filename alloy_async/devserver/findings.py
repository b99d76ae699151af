"""What somebody should look at in an event."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing in an event that is wrong, or probably not what was meant.

    Attributes:
        level: ``error`` for what the edge or a schema refuses, ``warning`` for the rest.
        code: what kind of thing, for filters.
        path: where, for example ``xdm.commerce.order``.
        message: what is wrong.
        advice: what to do.
    """

    level: Literal["error", "warning"]
    code: str
    path: str
    message: str
    advice: str

    def as_dict(self) -> dict[str, str]:
        """Write it as the feed does."""
        return asdict(self)
