"""The page of the development edge: one file, sent with a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import Response

__all__ = ["content_security_policy", "page_response"]


def page_response() -> Response:
    """Answer with the page."""
    page = _page()
    return Response(
        page, media_type="text/html", headers={"content-security-policy": content_security_policy(page)}
    )


def content_security_policy(page: str) -> str:
    """Write the policy under which a page's one script and one style run, and nothing else.

    What the page shows comes from whoever can reach the edge. Should markup of theirs ever get into the document, it can
    neither run, nor load, nor send anything: scripts and styles are named by their hashes, addresses are the edge's own.

    Args:
        page: HTML with one ``<script>`` and one ``<style>``, both without attributes.

    Source: W3C, Content Security Policy Level 3; W3C, Trusted Types.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of('script', page)}",
            f"style-src {_hash_of('style', page)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


@cache
def _page() -> str:
    return files("alloy_async.devserver").joinpath("page.html").read_text(encoding="utf-8")


def _hash_of(tag: str, page: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
