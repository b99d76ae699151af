"""From a caller's objects to JSON bytes, and from an answer's bytes back.

The snapshot goes through a normaliser of our own, because every JSON library corrupts something in silence:
the standard library turns the key 1 into "1", orjson turns NaN into null, both read what is not JSON.
What is taken and what is refused:

=====================================  ==========================================
str, bool, int, float, None            as they are; NaN and infinities are refused
dict and any Mapping                   object; keys must be str
list, tuple, namedtuple                array
aware datetime (pandas too)            ISO 8601 text; a naive one is refused
date, time                             ISO 8601 text
Decimal                                number; with a fraction the nearest that a double holds
UUID                                   text
Enum                                   its value
dataclass, pydantic model (by alias)   object
numpy scalar                           number, bool or text
everything else                        refused: bytes, set, generator, Path, object …
=====================================  ==========================================
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import cache
from math import isfinite
from typing import Any
from uuid import UUID

__all__ = ["MAX_DEPTH", "Unfit", "decode", "encode", "normalise"]

MAX_DEPTH = 256
"""Levels of nesting that are taken. Deep enough for any XDM, shallow enough for every JSON reader in use."""

MAX_PATH = 500
"""Characters of a path that an error names."""

_SAFE_BITS = 14_000  # 4 214 digits; the interpreter converts at most 4 300 by default


class Unfit(Exception):
    """A value that JSON cannot hold, or would hold wrongly.

    Attributes:
        path: where it is, outermost first, for example ``["xdm", "items", 0]``; filled while it travels up.
        problem: what is wrong with it, and what to do.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str | int] = []

    def where(self) -> str:
        """Write the path as ``xdm.items[0].sku``; keys and paths that are absurdly long are cut."""
        text = ""
        for step in self.path:
            text += f"[{step}]" if isinstance(step, int) else f".{step[:100]}" if text else step[:100]
        return text if len(text) <= MAX_PATH else f"{text[:MAX_PATH]}…"


def normalise(value: object, name: str) -> Any:
    """Return a snapshot of a value that holds nothing but what JSON can hold.

    Args:
        value: whatever the caller gave.
        name: what the caller calls it, the first step of the path in an error.

    Raises:
        Unfit: something in it cannot be held; its path says where.
    """
    try:
        return _snapshot(value, 0)
    except Unfit as unfit:
        unfit.path.append(name)
        unfit.path.reverse()
        raise
    except RecursionError:
        too_deep = Unfit(f"nested too deep, or it contains itself; at most {MAX_DEPTH} levels are taken.")
        too_deep.path.append(name)
    raise too_deep


def encode(value: object) -> bytes:
    """Write a normalised value as compact JSON in UTF-8.

    Raises:
        Unfit: a text holds half of a surrogate pair, which UTF-8 cannot hold; its path says where.
    """
    fast = _fast_encoder()
    if fast is not None:
        try:
            # Copied: orjson's own result may hold on to a buffer of several kilobytes as long as the event waits.
            return bytes(memoryview(fast(value)))
        except TypeError:
            pass  # a number beyond 64 bits, very deep nesting, half of a surrogate pair: left to the standard library
    try:
        return _ENCODER(value).encode()
    except UnicodeEncodeError:
        pass  # raised below, outside, because Python's own error holds the text
    except RecursionError:
        raise Unfit("nested too deep to be called from so many frames.") from None
    unfit = Unfit(
        "holds half of a surrogate pair (text cut in the middle of an emoji?), which UTF-8 cannot hold."
    )
    unfit.path = _find_surrogate(value) or []
    raise unfit


def decode(body: bytes | str) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is not JSON, not text, nested too deep, or holds a number of absurd length.
    """
    try:
        return json.loads(body)
    except RecursionError:
        pass
    raise ValueError("nested too deep")


def _make_encoder() -> Callable[[object], str]:
    encoder = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
    )
    accelerator = getattr(json.encoder, "c_make_encoder", None)
    if accelerator is None:  # an interpreter without it, such as PyPy
        return encoder.encode
    # JSONEncoder.encode makes a new accelerator for each call, a sixth of its time for a small event.
    write = accelerator(
        None, encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
    )
    return lambda value: "".join(write(value, 0))


_ENCODER = _make_encoder()


@cache
def _fast_encoder() -> Callable[[object], bytes] | None:
    """Return orjson's encoder where the extra ``fast`` is installed; looked for at the first event, not at import."""
    try:
        import orjson  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return orjson.dumps


def _snapshot(value: object, depth: int) -> Any:
    kind = type(value)
    return value if kind in _AS_IT_IS else _SNAPSHOTS.get(kind, _rare)(value, depth)


def _object(value: Mapping[Any, object], depth: int) -> dict[str, Any]:
    if depth >= MAX_DEPTH:
        raise Unfit(f"nested too deep, or it contains itself; at most {MAX_DEPTH} levels are taken.")
    result = {}
    for key, item in value.items():
        if type(key) is not str:
            key = _key(key)  # noqa: PLW2901 - the key as it will be written
        kind = type(item)
        # _snapshot again, written out: a call for each text would cost as much as all the rest.
        if kind in _AS_IT_IS:
            result[key] = item
            continue
        try:
            result[key] = _SNAPSHOTS.get(kind, _rare)(item, depth + 1)
        except Unfit as unfit:
            unfit.path.append(key)
            raise
    return result


def _array(value: list[object] | tuple[object, ...], depth: int) -> list[Any]:
    if depth >= MAX_DEPTH:
        raise Unfit(f"nested too deep, or it contains itself; at most {MAX_DEPTH} levels are taken.")
    result = []
    for index, item in enumerate(value):
        try:
            result.append(_snapshot(item, depth + 1))
        except Unfit as unfit:
            unfit.path.append(index)
            raise
    return result


def _key(key: object) -> str:
    if isinstance(key, str) and not isinstance(key, Enum):
        return str.__str__(key)
    raise Unfit(f"has a key of type {type(key).__name__}; keys must be str.")


def _integer(value: int, _depth: int = 0) -> int:
    if value.bit_length() > _SAFE_BITS:
        raise Unfit("is an integer of more than 4 200 digits; give it as text.")
    return value


def _number(value: float, _depth: int = 0) -> float:
    if isfinite(value):
        return value
    raise Unfit(f"is {value}, which JSON cannot hold; leave it out, or give None.")


def _rare(value: Any, depth: int) -> Any:
    """Handle whatever is not one of JSON's own types; some of it runs code of the caller's, which may raise."""
    try:
        return _convert(value, depth)
    except (Unfit, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach a checkout
        kind = type(error).__name__
    raise Unfit(f"could not be read: its own code raised {kind}.")  # out here, without the error and its text


def _convert(value: object, depth: int) -> Any:
    """Ask in the order in which the kinds overlap."""
    if isinstance(value, Enum):
        return _snapshot(value.value, depth)
    if isinstance(value, Mapping):
        return _object(value, depth)
    if isinstance(value, (list, tuple)):
        return _array(value, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _object({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, depth)
    if _is_pydantic_model(value):
        return _snapshot(value.model_dump(by_alias=True), depth)  # type: ignore[attr-defined]  # it is a model
    return _scalar(value)


def _scalar(value: object) -> str | int | float | bool | None:  # noqa: PLR0911 - one line a type
    value = _without_numpy(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _integer(int(value))
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, UUID):
        return str(value)
    return _moment(value)


def _decimal(value: Decimal) -> int | float:
    if not value.is_finite():
        raise Unfit(f"is {value}, which JSON cannot hold; leave it out, or give None.")
    if value != value.to_integral_value():
        return _number(float(value))
    if value.adjusted() > 4_200:
        raise Unfit("is a number of more than 4 200 digits; give it as text.")
    return int(value)


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        if value != value:  # noqa: PLR0124 - how pandas says that there is no moment (NaT)
            raise Unfit("is a missing moment (NaT); leave it out, or give None.")
        if value.utcoffset() is None:
            raise Unfit("is a datetime without a time zone; add one, for example datetime.now(UTC).")
        text = value.isoformat()
        return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
    if isinstance(value, (date, time)):
        return value.isoformat()
    raise Unfit(f"is of type {type(value).__name__}, which has no one meaning in JSON; convert it first.")


def _is_pydantic_model(value: object) -> bool:
    # By name and not by isinstance: importing pydantic's model class here would cost every script its import.
    return hasattr(type(value), "__pydantic_serializer__") and hasattr(value, "model_dump")


def _without_numpy(value: Any) -> Any:
    numpy = sys.modules.get("numpy")  # a numpy value cannot exist before numpy was imported
    if numpy is None or not isinstance(value, numpy.generic):
        return value
    if isinstance(value, (numpy.datetime64, numpy.timedelta64)):
        return (
            value  # item() would make a bare count of nanoseconds of it; refused with the other foreign types
        )
    return value.item()


_AS_IT_IS = frozenset({str, bool, type(None)})

_SNAPSHOTS: dict[type, Callable[[Any, int], Any]] = {
    dict: _object,
    list: _array,
    tuple: _array,
    int: _integer,
    float: _number,
}
"""How each of JSON's own types is taken; asked by exact type, because a subclass may be anything."""


def _find_surrogate(value: object) -> list[str | int] | None:
    """Find the first text that UTF-8 cannot hold, and return the path to it."""
    if isinstance(value, str):
        return [] if any("\ud800" <= character <= "\udfff" for character in value) else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        if isinstance(step, str) and _find_surrogate(step) is not None:
            return []
        inner = _find_surrogate(item)
        if inner is not None:
            return [step, *inner]
    return None
