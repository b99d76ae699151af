"""What a fault does to an answer, before it is on its way: refusals, 207, another content type."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .problems import Problem

if TYPE_CHECKING:
    from datetime import datetime

    from .faults import Fault
    from .messages import EdgeAnswer

__all__ = ["refuse", "spoil"]

# The code that the edge has for a status; the others are plain HTTP.
# Source: Adobe Experience Platform Edge Network API, list of error codes.
_CODES = {
    400: "0105-400",
    401: "0503-401",
    403: "0400-403",
    408: "0109-408",
    409: "0302-409",
    413: "0112-413",
    415: "0111-415",
    422: "0104-422",
    500: "0001-500",
    502: "0202-502",
    503: "0201-503",
    504: "0200-504",
}


def refuse(fault: Fault | None) -> None:
    """Refuse a request that a fault meets before the edge has taken it.

    Raises:
        Problem: of the fault's status.
    """
    if fault is not None and (fault.status is not None or fault.text is not None):
        status = fault.status or 502
        raise Problem(_CODES.get(status, str(status)), "A fault switch refused the request.")


def spoil(answer: EdgeAnswer, fault: Fault | None, moment: datetime) -> EdgeAnswer:
    """Change an answer as a fault asks.

    Args:
        answer: what the edge answered, or its refusal from `refuse`.
        fault: what goes wrong; one that acts on the connection leaves the answer as it is.
        moment: when the request came.
    """
    if fault is None:
        return answer
    if fault.errors:
        return _with_errors(answer)
    headers = {**answer.headers, **_retry_after(fault, moment)}
    if fault.content_type is not None:
        return replace(answer, headers={**headers, "content-type": fault.content_type})
    if fault.text is not None:
        headers["content-type"] = "text/plain;charset=utf-8"
        return replace(answer, headers=headers, body=fault.text.encode(errors="backslashreplace"))
    return replace(answer, headers=headers)


def _retry_after(fault: Fault, moment: datetime) -> dict[str, str]:
    """Source: RFC 9110, Retry-After: a number of seconds, or a date in GMT."""
    if fault.retry_after is not None:
        return {"retry-after": str(fault.retry_after)}
    if fault.retry_after_date is not None:
        date = moment.astimezone(UTC) + timedelta(seconds=fault.retry_after_date)
        return {"retry-after": format_datetime(date, usegmt=True)}
    return {}


def _with_errors(answer: EdgeAnswer) -> EdgeAnswer:
    """Say that an upstream failed although the events were taken; a refusal stays a refusal.

    Source: Adobe Experience Platform Edge Network API, non-fatal errors: status 207, ``errors`` beside ``handle``.
    """
    if answer.status >= 300:
        return answer
    # The answer of collect is empty; its id stands in the header, percent-encoded.
    empty = {"requestId": unquote(answer.headers["x-request-id"]), "handle": []}
    content: dict[str, Any] = json.loads(answer.body) if answer.body else empty
    problem = Problem(
        "0200-504", "A fault switch says that an upstream did not answer in time.", event_index=0
    )
    content["errors"] = [problem.details(content["requestId"])]
    headers = {**answer.headers, "content-type": "application/json;charset=utf-8"}
    return replace(answer, status=207, headers=headers, body=json.dumps(content).encode())
