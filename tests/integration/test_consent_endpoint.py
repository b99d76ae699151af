"""Where a visitor's choice arrives: who may bring it, what counts as one, and where a form leads on to."""

from __future__ import annotations

import pytest
from browser import Browser, Shop, running

from alloy_async.asgi import ConsentEndpoint


@pytest.fixture
def shop():
    """An application without pages of its own."""
    return Shop()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin"}, 204),
        ({"sec-fetch-site": "none"}, 204),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "https://shop.example"}, 403),
        ({"origin": "https://shop.example"}, 204),
        ({"origin": "https://SHOP.example"}, 204),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://shop.example.evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://www.shop.example", "sec-fetch-site": "same-site"}, 204),
        ({}, 403),
    ],
)
async def test_only_pages_of_the_site_may_choose(shop, edge, headers, status):
    """No other site says yes, or no, for a visitor."""
    shop.handlers["/consent"] = ConsentEndpoint(origins=["https://www.shop.example"])
    async with running(shop, edge) as (app, _), Browser(app) as browser:
        browser.headers.pop("sec-fetch-site")
        answer = await browser.post("/consent", json={"purposes": "all"}, headers=headers)
        assert (answer.status_code, bool(browser.cookies)) == (status, status == 204)


@pytest.mark.parametrize(
    ("next_path", "location"),
    [
        ("/", "/"),
        ("/cart?a=1&b=%20#top", "/cart?a=1&b=%20#top"),
        ("/größe", "/gr%C3%B6%C3%9Fe"),
        ("//evil.example", None),
        ("/\\evil.example", None),
        ("\\/evil.example", None),
        ("/\t/evil.example", None),
        ("https://evil.example", None),
        ("javascript:alert(1)", None),
        ("evil", None),
        ("", None),
        ("/a\r\nSet-Cookie: b=c", None),
    ],
)
async def test_a_form_leads_on_within_the_site(shop, edge, next_path, location):
    """Nowhere else; a form that asks for it is refused before anything is chosen."""
    async with running(shop, edge) as (app, _), Browser(app) as browser:
        answer = await browser.post("/consent", data={"purposes": "all", "next": next_path})
        assert (answer.status_code, answer.headers.get("location")) == (303 if location else 400, location)
        assert bool(browser.cookies) == bool(location)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'{"purposes": "ALL"}', "application/json; charset=utf-8", 204),
        (b"purposes=none", "application/x-www-form-urlencoded", 204),
        (b'{"purposes": "yes"}', "application/json", 400),
        (b'{"purposes": true}', "application/json", 400),
        (b'{"purposes": ["all"]}', "application/json", 400),
        (b"{}", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 4_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"purposes": "all", "next": 5}', "application/json", 400),
        (b"purposes=%ff", "application/x-www-form-urlencoded", 400),
        (b"a&" * 50, "application/x-www-form-urlencoded", 400),
        (b"", "application/x-www-form-urlencoded", 400),
        (b"all", "text/plain", 415),
        (b"", "", 415),
        (b" " * 5_000 + b'{"purposes": "all"}', "application/json", 413),
    ],
)
async def test_only_a_choice_is_one(shop, edge, body, content_type, status):
    """Anything else is refused in plain words, and changes nothing."""
    async with running(shop, edge) as (app, _), Browser(app) as browser:
        answer = await browser.post("/consent", content=body, headers={"content-type": content_type})
        assert (answer.status_code, bool(browser.cookies)) == (status, status == 204)
        assert answer.headers["cache-control"] == "no-store"


async def test_other_methods_are_refused(shop, edge):
    """A link must not choose."""
    async with running(shop, edge) as (app, _), Browser(app) as browser:
        answer = await browser.get("/consent?purposes=all")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_half_a_body_is_no_choice(shop, edge):
    """A browser that goes away in the middle has not said anything."""
    sent = []
    pieces = iter(
        [{"type": "http.request", "body": b"purposes=all", "more_body": True}, {"type": "http.disconnect"}]
    )

    async def receive():
        return next(pieces)

    async def send(message):
        sent.append(message)

    headers = [(b"sec-fetch-site", b"same-origin"), (b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": "/consent", "query_string": b"", "headers": headers}
    async with running(shop, edge) as (app, _):
        await app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert not [name for name, _ in sent[0]["headers"] if name == b"set-cookie"]
