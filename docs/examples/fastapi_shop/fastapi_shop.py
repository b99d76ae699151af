"""A shop in FastAPI with a consent banner: ``uvicorn fastapi_shop:app``.

A page view is recorded when it happens, and waits until its visitor has chosen; a purchase likewise. Nothing about a visitor
leaves the process before there is a yes. The shop's session, a random id in a signed cookie, begins with the first page; besides it no
cookie but the choice is set before that.
"""

from __future__ import annotations

import html
import secrets

from fastapi import FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware

from alloy_async import Alloy
from alloy_async.asgi import AlloyMiddleware
from alloy_async.fastapi import AlloyVisitor, consent_router, lifespan

alloy = Alloy("shop")
SETTINGS = {"config_id": "ebebf826", "ims_org_id": "ADB3@AdobeOrg", "opt_in_enabled": True}
SHOES = {"SKU": "RUN-0427", "name": "Running shoe", "priceTotal": 99.9, "currencyCode": "EUR"}


def session_key(scope) -> str | None:
    """Return the session's own random id: signed by us, so that nobody can take another's."""
    session = scope.get("session")
    return None if session is None else session.setdefault("id", secrets.token_urlsafe(16))


app = FastAPI(
    lifespan=lambda _: lifespan(alloy, **SETTINGS),
    middleware=[
        # A session that outlives the browser's window would have to be in the shop's privacy notice.
        Middleware(SessionMiddleware, secret_key=secrets.token_hex(32), max_age=None, https_only=True),
        Middleware(AlloyMiddleware, alloy=alloy, key=session_key),
    ],
)
app.include_router(consent_router())

BANNER = """
<form method="post" action="/consent">
  <p>May we learn from your visit?</p>
  <input type="hidden" name="next" value="{path}">
  <button name="purposes" value="all">Yes</button>
  <button name="purposes" value="none">No</button>
</form>
"""
PAGE = """<!doctype html><title>Shop</title><h1>{name}</h1>
<form method="post" action="/buy"><button name="sku" value="RUN-0427">Buy</button></form>{banner}"""


@app.get("/", response_class=HTMLResponse)
async def product(request: Request, visitor: AlloyVisitor) -> str:
    visitor.event(type="web.webpagedetails.pageViews")  # not awaited: the page waits for nothing
    undecided = await visitor.get_purposes() == "pending"
    banner = BANNER.format(path=html.escape(request.url.path)) if undecided else ""
    return PAGE.format(name=SHOES["name"], banner=banner)


@app.post("/buy")
async def buy(visitor: AlloyVisitor, sku: str = Form()) -> RedirectResponse:
    order = {"purchases": {"value": 1}, "order": {"priceTotal": SHOES["priceTotal"], "currencyCode": "EUR"}}
    visitor.event(
        type="commerce.purchases", xdm={"commerce": order, "productListItems": [SHOES]}, data={"sku": sku}
    )
    return RedirectResponse("/", status_code=303)
