"""Which door of the edge a request knocks at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Action", "Endpoint", "Paths"]

Action = Literal["interact", "collect", "privacy/set-consent", "identity/acquire", "media"]
Version = Literal["v1", "v2"]

# Known hints are or2 va6 irl1 ind1 jpn3 sgp3 aus3, and t<number> from Target: letters, then digits.
_HINT = r"[a-z]+[0-9]+"
# set-consent and acquire exist in v1 only.
_V1_ONLY: frozenset[Action] = frozenset({"privacy/set-consent", "identity/acquire"})

# Source: Adobe Experience Platform Edge Network API, media: the actions below ``/va/v1``.
_MEDIA_ACTIONS = (
    "sessionStart", "sessionComplete", "sessionEnd", "play", "ping", "adBreakStart", "adBreakComplete", "adStart",
    "adComplete", "adSkip", "bitrateChange", "bufferStart", "chapterStart", "chapterComplete", "chapterSkip",
    "downloaded", "error", "pauseStart", "statesUpdate",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One action in one version of the API.

    Attributes:
        version: of the API.
        action: what is asked for.
        media: which of the media actions, for example ``sessionStart``; None for other actions.
    """

    version: Version
    action: Action
    media: str | None = None


class Paths:
    """The URL grammar ``/{base path}[/{location hint}]/{version}/{action}``; media has ``/va`` before the version.

    Args:
        base_path: as the client's ``edge_base_path``, with or without slashes; may hold several steps, or be empty.

    Raises:
        ValueError: the base path is the one of the read-back.

    Source: Adobe Experience Platform Edge Network API, endpoints and location hints.
    """

    def __init__(self, base_path: str) -> None:
        steps = [step for step in base_path.split("/") if step]
        if steps[:1] == ["_dev"]:
            raise ValueError("base_path must not begin with _dev: what was received is read back there")
        actions = "|".join(action for action in get_args(Action) if action != "media")
        media = "|".join(_MEDIA_ACTIONS)
        base = "".join(f"/{re.escape(step)}" for step in steps)
        self._pattern = re.compile(
            f"{base}(?:/{_HINT})?/(?:va/v1/(?P<media>{media})|(?P<version>v1|v2)/(?P<action>{actions}))"
        )

    def find(self, path: str) -> Endpoint | None:
        """Return the endpoint that a path names, or None."""
        found = self._pattern.fullmatch(path)
        if found is None:
            return None
        if found["media"] is not None:
            return Endpoint("v1", "media", found["media"])
        version: Version = "v1" if found["version"] == "v1" else "v2"
        action = next(known for known in get_args(Action) if known == found["action"])
        return None if version == "v2" and action in _V1_ONLY else Endpoint(version, action)
