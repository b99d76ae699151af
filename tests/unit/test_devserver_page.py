"""The page is one file that brings everything along, under a policy that knows exactly its script and its style."""

import base64
import hashlib
import re
from importlib.resources import files

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.requests import Request

from alloy_async.devserver import create_app
from alloy_async.devserver.page import content_security_policy, page_response

PAGE = files("alloy_async.devserver").joinpath("page.html").read_text(encoding="utf-8")


def sha256(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_policy_names_script_and_style_by_their_hashes_and_allows_nothing_else():
    policy = content_security_policy("<style>b{}</style><script>run()\n</script>")
    directives = dict(directive.split(" ", 1) for directive in policy.split("; "))
    assert directives == {
        "default-src": "'none'",
        "script-src": sha256("run()\n"),
        "style-src": sha256("b{}"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


@pytest.mark.parametrize("page", ["<style></style>", "<style></style><script></script><script></script>"])
def test_a_page_with_no_script_or_two_is_an_error(page):
    with pytest.raises(ValueError, match="unpack"):
        content_security_policy(page)


def test_the_page_that_is_served_is_the_file_under_its_policy():
    answer = page_response()
    assert answer.body.decode() == PAGE
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == content_security_policy(PAGE)


@pytest.mark.parametrize(
    "way",
    [
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|setHTML",
        r"\beval\b|new Function|import\(",
        r"<[^>]*\son\w+\s*=",
        r"<[^>]*\sstyle\s*=",
        r"<(?:script|link|img|iframe|object|embed)\b[^>]*\ssrc\s*=",
        r"@import|url\((?!#)",
        r"https?://(?!www\.w3\.org/2000/svg)",
    ],
)
def test_the_file_has_no_way_from_text_to_markup_and_nothing_from_elsewhere(way):
    assert re.findall(way, PAGE) == []


@pytest.mark.parametrize("path", ["/", "/_dev"])
async def test_short_addresses_lead_to_the_page(path):
    app, sent = create_app(), []
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}

    async def send(message):
        sent.append(message)

    await app(scope, Request(scope).receive, send)
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"location"]) == (307, b"/_dev/")
    assert app.state.edge.requests == []
