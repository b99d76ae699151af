"""Whoever has said yes is recorded; without a key nothing waits longer than its request."""

from __future__ import annotations

import importlib

import httpx
import pytest

pytest.importorskip("starlette")


async def test_a_visitor_without_a_key(edge):
    """Before the choice nothing is kept for later; the choice is in the browser, and holds for all that follows."""
    import site_app

    site = importlib.reload(site_app)
    transport = httpx.ASGITransport(site.app)
    async with site.app.router.lifespan_context(site.app):
        async with httpx.AsyncClient(
            transport=transport, base_url="https://site.example", headers={"sec-fetch-site": "same-origin"}
        ) as browser:
            assert (await browser.get("/")).json()["ask"]
            assert (await browser.post("/consent", json={"purposes": "all"})).status_code == 204
            assert not (await browser.get("/")).json()["ask"]
            assert (await browser.get("/download")).text.count("page") == 3
            await site.alloy.flush()
        books = site.alloy.statistics()
    kinds = [record["event"]["xdm"]["eventType"] for record in edge.events]
    assert kinds == ["web.webpagedetails.pageViews", "web.webinteraction.linkClicks"]
    assert books.expired == 1
