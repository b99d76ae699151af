"""Answers as records, for clients that ask for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .messages import EdgeAnswer

__all__ = ["RecordFormat", "in_records", "read_record_format"]

_MAX_SEPARATOR = 16


@dataclass(frozen=True, slots=True)
class RecordFormat:
    """What stands around each record.

    Attributes:
        before: U+0000, unless the client asks for another.
        after: a line feed, likewise.
    """

    before: str = "\0"
    after: str = "\n"


def read_record_format(meta: object) -> RecordFormat | None:
    r"""Read ``meta.konductorConfig.streaming``; None when no records are asked for.

    Raises:
        Problem: 0102-400, a separator that is no short text. The code is presumed.

    Source: Adobe's mobile SDKs: ``{"enabled": true, "recordSeparator": "\u0000", "lineFeed": "\n"}``.
    """
    config = meta.get("konductorConfig") if isinstance(meta, dict) else None
    streaming = config.get("streaming") if isinstance(config, dict) else None
    if not isinstance(streaming, dict) or streaming.get("enabled") is not True:
        return None
    default = RecordFormat()
    return RecordFormat(
        _separator(streaming, "recordSeparator", default.before),
        _separator(streaming, "lineFeed", default.after),
    )


def _separator(streaming: Mapping[str, Any], name: str, default: str) -> str:
    value = streaming.get(name, default)
    if not isinstance(value, str) or len(value) > _MAX_SEPARATOR:
        place = f"'meta.konductorConfig.streaming.{name}'"
        raise Problem("0102-400", f"{place} must be a text of at most {_MAX_SEPARATOR} characters.")
    return value


def in_records(answer: EdgeAnswer, form: RecordFormat | None) -> EdgeAnswer:
    """Write an answer as records, each a whole envelope with one of the handles; refusals stay one document."""
    if form is None or not answer.body or answer.status >= 300:
        return answer
    text = "".join(
        f"{form.before}{json.dumps(record)}{form.after}" for record in _records(json.loads(answer.body))
    )
    return replace(answer, body=text.encode(errors="backslashreplace"))


def _records(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a record for each handle, and one for the errors and warnings; never none at all."""
    about = {"requestId": content["requestId"]}
    findings: dict[str, Any] = {name: content[name] for name in ("errors", "warnings") if name in content}
    for handle in content["handle"]:
        yield {**about, "handle": [handle]}
    if findings or not content["handle"]:
        yield {**about, "handle": [], **findings}
