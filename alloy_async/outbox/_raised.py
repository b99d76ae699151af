"""What an outbox of somebody else's may raise, in words that callers know."""

from __future__ import annotations

from ..errors import OutboxError

__all__ = ["as_outbox_error"]


def as_outbox_error(action: str, error: Exception) -> OutboxError:
    """Return an outbox's own error; a foreign one's text may hold what must not be logged."""
    if isinstance(error, OutboxError):
        return error
    return OutboxError(action, "that was given", f"it raised {type(error).__name__}.")
