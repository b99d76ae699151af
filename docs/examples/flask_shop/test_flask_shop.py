"""The shop asks each visitor once, and sends what those did who agreed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

flask_shop = pytest.importorskip("flask_shop", reason="needs Flask", exc_type=ImportError)

ASKED = b"May we record"


@pytest.fixture
def shop(edge):
    """The application; closed like a server that stops."""
    app = flask_shop.create_app()
    yield app
    app.extensions["alloy"].close()


def types_of(edge):
    return sorted(record["event"]["xdm"]["eventType"].rpartition(".")[2] for record in edge.events)


def test_nothing_is_sent_before_the_visitor_has_agreed(shop, edge):
    """The banner stands on the page until the visitor says yes; what they did before is sent then."""
    ada = shop.test_client()
    assert ASKED in ada.get("/").data
    assert ada.post("/checkout").status_code == 303
    assert edge.requests == []
    assert ada.post("/consent", data={"purposes": "all"}).status_code == 303
    assert ASKED not in ada.get("/").data
    shop.extensions["alloy"].flush()
    assert types_of(edge) == ["pageViews", "pageViews", "purchases"]
    pages = {record["event"]["xdm"]["web"]["webPageDetails"]["URL"] for record in edge.events}
    assert pages == {"http://localhost/", "http://localhost/checkout"}


def test_a_refusal_sends_nothing_and_is_not_another_visitors(shop, edge):
    """Bob's no leaves nothing of Bob, and does not stop Ada."""
    ada, bob = shop.test_client(), shop.test_client()
    for visitor, purposes in ((ada, "all"), (bob, "none")):
        visitor.get("/")
        visitor.post("/consent", data={"purposes": purposes})
    assert ASKED not in bob.get("/").data
    bob.post("/checkout")
    ada.post("/checkout")
    shop.extensions["alloy"].flush()
    assert types_of(edge) == ["pageViews", "purchases"]
    assert shop.extensions["alloy"].statistics().refused == 3


@pytest.mark.parametrize(("purposes", "arrived"), [("all", 3), ("none", 0)])
def test_a_choice_reaches_every_worker(edge, monkeypatch, purposes, arrived):
    """The next request may meet another process: that one learns the choice, and does not ask again."""
    monkeypatch.setenv("SECRET_KEY", "of the test")
    first, second = flask_shop.create_app(), flask_shop.create_app()
    browser, elsewhere = first.test_client(), second.test_client()
    browser.get("/")
    elsewhere.set_cookie("session", browser.get_cookie("session").value)
    assert ASKED in elsewhere.get("/").data  # parked there
    browser.post("/consent", data={"purposes": purposes})
    elsewhere.set_cookie("session", browser.get_cookie("session").value)
    assert ASKED not in elsewhere.get("/").data
    for shop in (first, second):
        shop.extensions["alloy"].close()
    assert types_of(edge) == ["pageViews"] * arrived


def test_a_word_that_is_no_choice_is_refused(shop, edge):
    """Only "all" and "none" are choices."""
    visitor = shop.test_client()
    visitor.get("/")
    assert visitor.post("/consent", data={"purposes": "maybe"}).status_code == 400
    assert ASKED in visitor.get("/").data


def test_no_other_site_chooses_for_a_visitor(shop, edge):
    """A form elsewhere is sent without our session's cookie, and makes no session that has consented."""
    visitor = shop.test_client()
    assert visitor.post("/consent", data={"purposes": "all"}).status_code == 403
    assert ASKED in visitor.get("/").data
    assert edge.requests == []


def test_many_threads_serve_many_visitors(shop, edge):
    """As under a server with threads: each visitor's events arrive, nobody waits."""

    def visit(_):
        browser = shop.test_client()
        browser.get("/")
        browser.post("/consent", data={"purposes": "all"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(24)))
    shop.extensions["alloy"].flush()
    assert types_of(edge) == ["pageViews"] * 24
