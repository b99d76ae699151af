"""The shop records what its visitors consent to, and nothing else."""

from __future__ import annotations

import importlib

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("itsdangerous")  # signs the session
pytest.importorskip("multipart")  # reads the forms

pytestmark = pytest.mark.alloy(live=True)  # the shop finds it in its environment


@pytest.fixture
async def shop(alloy_edge):
    """The shop of a fresh process, in front of a development edge."""
    import fastapi_shop as module

    module = importlib.reload(module)
    async with module.app.router.lifespan_context(module.app):
        yield module


def browser(shop):
    headers = {"sec-fetch-site": "same-origin", "accept": "text/html"}
    transport = httpx.ASGITransport(shop.app)
    return httpx.AsyncClient(
        transport=transport, base_url="https://shop.example", headers=headers, follow_redirects=True
    )


async def test_a_yes_releases_what_was_parked(shop, alloy_edge):
    """The page view and the purchase of before, in order, and what comes after; the banner is gone."""
    async with browser(shop) as visitor:
        assert "May we" in (await visitor.get("/")).text
        await visitor.post("/buy", data={"sku": "RUN-0427"})
        alloy_edge.assert_nothing_sent()
        assert not any("kndctr" in name or "alloy" in name for name in visitor.cookies)
        page = await visitor.post("/consent", data={"purposes": "all", "next": "/"})
        assert "May we" not in page.text
        await shop.alloy.flush()
    kinds = [event.type for event in alloy_edge.events]
    views, purchase = "web.webpagedetails.pageViews", "commerce.purchases"
    assert kinds == [views, purchase, views, views]
    assert len({str(event.identity) for event in alloy_edge.events}) == 1


async def test_a_no_ends_it(shop, alloy_edge):
    """For this visitor; another one's yes is another matter."""
    async with browser(shop) as unwilling, browser(shop) as willing:
        for visitor in (unwilling, willing):
            await visitor.get("/")
        await unwilling.post("/consent", data={"purposes": "none", "next": "/"})
        await willing.post("/consent", data={"purposes": "all", "next": "/"})
        await unwilling.post("/buy", data={"sku": "RUN-0427"})
        await shop.alloy.flush()
    assert {event.type for event in alloy_edge.events} == {"web.webpagedetails.pageViews"}
    assert shop.alloy.statistics().refused >= 3
