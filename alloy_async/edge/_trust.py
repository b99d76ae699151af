"""Whom a request is led through, and whose certificates are believed: what the transports have in common."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import ConfigurationError
from ..settings import LOOPBACK, Settings

__all__ = ["heeds_environment", "load_bundle", "unusable_proxy"]


def heeds_environment(settings: Settings) -> bool:
    """Return whether variables about proxies and certificates are obeyed.

    What the environment says about proxies is for the world outside: a proxy would be shown this machine's talk.
    """
    return not LOOPBACK.fullmatch(urlsplit(settings.base_url()).hostname or "")


def load_bundle(bundle: Path) -> ssl.SSLContext:
    """Return a context that believes the certificates in a file, and verifies with them.

    Raises:
        ConfigurationError: the file cannot be read, or holds no certificates.
    """
    try:
        return ssl.create_default_context(cafile=str(bundle))
    except OSError as error:  # ssl.SSLError is one
        problem = type(error).__name__
    raise ConfigurationError(
        f"ca_bundle: no certificates can be read from it ({problem}).", option="ca_bundle"
    )


def unusable_proxy(schemes: str) -> ConfigurationError:
    """Return the error for a proxy whose address cannot be used, without the address: it may hold a password.

    Args:
        schemes: those that can be used, for people.
    """
    return ConfigurationError(
        f"proxy: must be an address such as http://proxy.example:3128, with {schemes}.", option="proxy"
    )
