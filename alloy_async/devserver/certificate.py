"""A throw-away certificate, so that the development edge can be spoken to over https."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Certificate", "throw_away_certificate"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate with its key, and what a client needs to believe it.

    Attributes:
        authority: the certificate of the authority that signed it, as PEM: for a client's bundle of trusted ones.
        fingerprint: SHA-256 of the server's certificate, as browsers show it: hex pairs with colons.
        key_hash: SHA-256 of its public key (SPKI) in base64, as Chromium's switch
            ``--ignore-certificate-errors-spki-list`` takes it.
    """

    authority: str
    fingerprint: str
    key_hash: str
    _key_and_chain: bytes = field(repr=False)

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """Lend a file, readable by its owner only, with the private key and the certificates behind it, as PEM."""
        with tempfile.TemporaryDirectory(prefix="alloy-async-") as folder:
            file = Path(folder, "key-and-certificate.pem")
            file.write_bytes(self._key_and_chain)
            yield file


def throw_away_certificate(*names: str) -> Certificate:
    """Make a certificate that is signed by an authority of its own, whose key is forgotten at once.

    Args:
        names: host names besides those of loopback for which it holds, for example ``edge.shop.test``.

    Raises:
        ModuleNotFoundError: the extra ``tls`` is not installed.
    """
    try:
        import trustme  # noqa: PLC0415 - an extra: most people need no https
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        advice = "https needs the extra tls: pip install 'alloy-async[tls]'"
        raise ModuleNotFoundError(advice, name=missing.name) from None
    authority = trustme.CA()
    issued = authority.issue_cert(*dict.fromkeys([*_LOOPBACK, *names]))
    certificate = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    public_key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Certificate(
        authority=authority.cert_pem.bytes().decode(),
        fingerprint=hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest().hex(":").upper(),
        key_hash=base64.b64encode(hashlib.sha256(public_key).digest()).decode(),
        _key_and_chain=issued.private_key_and_cert_chain_pem.bytes(),
    )
