"""Events against XDM: the public schemas, or an organisation's own, out of a folder on this machine.

Nothing is fetched, and nothing of the schemas is part of this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from ..findings import MAX_FINDINGS, MAX_MADE, Finding, excerpt, place
from ..well_known import nearest
from .bundle import bundle
from .catalogue import Catalogue, UnusableSchemas
from .fields import Fields, UnknownField
from .names import wire_path
from .values import Values

__all__ = ["UnusableSchemas", "XdmSchemas"]


class XdmSchemas:
    """The class ExperienceEvent with every field group that was found for it.

    Attributes:
        problems: one line for each file or piece that could not be used, and why.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        roots = catalogue.roots()
        found = bundle(catalogue, roots)
        self._values = Values(found, catalogue.problems)
        self._fields = Fields(found.schema)
        self._counts = len(catalogue), len(roots)
        self.problems: tuple[str, ...] = tuple(catalogue.problems)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> XdmSchemas:
        """Read all ``*.schema.json`` below a folder: a checkout of adobe/xdm, or schemas of one's own.

        A file that cannot be used does not stop the others; see ``problems``.

        Raises:
            UnusableSchemas: no such folder, no schema for ExperienceEvents in it, or jsonschema-rs is missing.
        """
        return cls(Catalogue.read(path))

    @property
    def summary(self) -> str:
        """Say in one line what was loaded."""
        schemas, roots = self._counts
        unused = f"; problems: {len(self.problems)}" if self.problems else ""
        return f"{schemas} XDM schemas, {roots} of them for ExperienceEvents{unused}"

    def check(self, event: Mapping[str, Any]) -> list[Finding]:
        """Compare an event's ``xdm`` with the schemas; one that is no object is not looked at.

        Args:
            event: the parsed event, with ``xdm`` in it.

        Returns:
            A finding for each value that a schema contradicts, and for each name that none has; of each kind at most
            `MAX_MADE`.
        """
        xdm = event.get("xdm")
        if not isinstance(xdm, dict):
            return []
        return [*islice(self._values.check(xdm), MAX_MADE), *islice(self._unknown(xdm), MAX_MADE)]

    def _unknown(self, xdm: Mapping[str, Any]) -> Iterator[Finding]:
        for count, unknown in enumerate(self._fields.unknown(xdm)):
            # Comparing names is slow, and nobody sees the findings beyond these.
            advice = _advice(unknown) if count < MAX_FINDINGS else ""
            message = f"No schema has the field {excerpt(unknown.path[-1])} here."
            yield Finding("error", "xdm-unknown-field", place(("xdm", *unknown.path)), message, advice)


def _advice(unknown: UnknownField) -> str:
    name = str(unknown.path[-1])
    on_the_wire = wire_path(name)
    if on_the_wire != (name,):
        return f"On the wire it is spelled '{place(on_the_wire)}'."
    if meant := nearest(name, unknown.siblings, 0.7):
        return f"Did you mean '{meant}'?"
    return "Put fields of your own below '_yourtenant', or all of it into 'data'."
