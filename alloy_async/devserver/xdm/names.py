"""How a field is spelled: in a schema of the XDM repository, and on the wire."""

from __future__ import annotations

import re

__all__ = ["wire_path"]

_ADOBE = "https://ns.adobe.com/"
_PREFIXED = re.compile(r"([A-Za-z][A-Za-z0-9_]*):([^/].*)")


def wire_path(name: str) -> tuple[str, ...]:
    """Return the names, outermost first, under which a schema's property travels.

    ============================================  =========================
    in the schema                                 on the wire
    ============================================  =========================
    ``xdm:web``                                   ``web``
    ``@id``                                       ``_id``
    ``dc:title``                                  ``_dc.title``
    ``https://ns.adobe.com/experience/target/x``  ``_experience.target.x``
    ``web``                                       ``web``
    ============================================  =========================

    Schemas that were exported from a schema registry are in the wire's spelling already.

    Source: adobe/xdm, its examples next to the events of Adobe's clients.
    """
    name = name.strip()
    if name.startswith("@"):
        return (f"_{name[1:]}",)
    if name.startswith(_ADOBE):
        first, *rest = [part for part in name.removeprefix(_ADOBE).split("/") if part] or [name]
        return (f"_{first}", *rest)
    prefixed = _PREFIXED.fullmatch(name)
    if prefixed is None:
        return (name,)
    prefix, local = prefixed.groups()
    return (local,) if prefix == "xdm" else (f"_{prefix}", local)
