"""The certificate of ``serve --tls``, and how a person tells clients to believe it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from .terminal import warn

if TYPE_CHECKING:
    from ..devserver import Certificate

__all__ = ["Trust", "trust_for"]

_REAL_EDGE = ("edge.adobedc.net", "adobedc.demdex.net")
"""Where the browser's SDK sends to unless told otherwise; the second only until it knows the visitor."""


@dataclass(frozen=True)
class Trust:
    """A certificate for one run.

    Attributes:
        certificate: what the server shows.
        bundle: file with the authority behind it, for clients; it is gone when the run ends.
    """

    certificate: Certificate
    bundle: Path

    @property
    def environment(self) -> str:
        """What stands before a command of ours, so that it believes the certificate."""
        return f"ALLOY_CA_BUNDLE={self.bundle} "

    def advice(self, address: str) -> Iterator[str]:
        """Yield lines for the person.

        Args:
            address: where the server listens, ``https://host:port``.
        """
        yield f"Certificate for this run, SHA-256 {self.certificate.fingerprint}; its authority: {self.bundle}"
        rules = ", ".join(f"MAP {host}:443 {urlsplit(address).netloc}" for host in _REAL_EDGE)
        yield (
            'A browser that finds it in place of the real edge: chromium --user-data-dir="$(mktemp -d)" '
            f'--ignore-certificate-errors-spki-list={self.certificate.key_hash} --host-resolver-rules="{rules}"'
        )


@contextmanager
def trust_for(host: str) -> Iterator[Trust]:
    """Make a certificate for loopback and one host, and a file for clients while the block runs.

    Raises:
        typer.Exit: a package is missing, or the host is no name; it has been said.
    """
    from ..devserver import throw_away_certificate  # noqa: PLC0415 - only with --tls

    try:
        certificate = throw_away_certificate(host)
    except ModuleNotFoundError as error:
        warn(f"--tls: {error}")
        raise typer.Exit(1) from None
    except ValueError as error:
        warn(f"--host {host}: no certificate can be made for it: {error}. Give a host name or an address.")
        raise typer.Exit(1) from None
    with TemporaryDirectory(prefix="alloy-async-") as folder:
        bundle = Path(folder, "authority.pem")
        bundle.write_text(certificate.authority)
        yield Trust(certificate, bundle)
