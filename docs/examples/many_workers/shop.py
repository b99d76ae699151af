"""A shop behind several workers, on one machine or on many: ``uvicorn shop:app --workers 4``.

A visitor's requests reach whichever worker is free. What one of them has parked is released by a yes that another one hears,
and refused by a no: all of them listen to Redis. Events wait in Redis too, and ``alloy-async relay`` sends them, so that a worker
that is killed loses nothing that had been released.

``ALLOY_REDIS_URL``, ``ALLOY_ENDPOINT`` and ``SHOP_SECRET`` come from the environment; see ``compose.yaml``.
"""

from __future__ import annotations

import os
import secrets

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware

from alloy_async import Alloy, ConsentStoreError
from alloy_async.asgi import AlloyMiddleware, RequestVisitor
from alloy_async.fastapi import AlloyVisitor, consent_router, lifespan

alloy = Alloy("shop")
SETTINGS = {
    "config_id": "ebebf826",
    "ims_org_id": "ADB3@AdobeOrg",
    "opt_in_enabled": True,
    "store": "redis",
    "outbox": "redis",
    "relay": True,
}


def session_key(scope) -> str | None:
    session = scope.get("session")
    return None if session is None else session.setdefault("id", secrets.token_urlsafe(16))


app = FastAPI(
    lifespan=lambda _: lifespan(alloy, **SETTINGS),
    middleware=[
        Middleware(SessionMiddleware, secret_key=os.environ["SHOP_SECRET"], max_age=None),
        Middleware(AlloyMiddleware, alloy=alloy, key=session_key, secure=False),
    ],
)
app.include_router(consent_router())


@app.get("/{page}")
async def page(page: str, visitor: AlloyVisitor) -> dict[str, object]:
    visitor.event(type="web.webpagedetails.pageViews", data={"page": page})
    return {"page": page, "choice": await choice_of(visitor), "worker": os.getpid()}


async def choice_of(visitor: RequestVisitor) -> str:
    """Return what the visitor chose; where Redis cannot say, what is known here: the page comes all the same."""
    try:
        return await visitor.get_purposes()
    except ConsentStoreError:
        return visitor.purposes
