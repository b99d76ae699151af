"""A site in Starlette whose choices live in cookies alone: ``uvicorn site_app:app``. Works behind any number of workers."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from alloy_async import Alloy
from alloy_async.asgi import AlloyMiddleware, ConsentEndpoint, lifespan, request_visitor

alloy = Alloy("site")


async def article(request) -> JSONResponse:
    visitor = request_visitor(request.scope)
    visitor.event(type="web.webpagedetails.pageViews")
    return JSONResponse({"title": "Running in the rain", "ask": visitor.purposes == "pending"})


async def download(request) -> StreamingResponse:
    request_visitor(request.scope).event(type="web.webinteraction.linkClicks")

    async def pages():
        for number in range(3):
            yield f"page {number}\n"

    return StreamingResponse(pages(), media_type="text/plain")


app = Starlette(
    routes=[
        Route("/", article),
        Route("/download", download),
        Route("/consent", ConsentEndpoint(), methods=["POST"]),
    ],
    middleware=[Middleware(AlloyMiddleware, alloy=alloy)],
    lifespan=lambda _: lifespan(
        alloy, config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True, store="memory"
    ),
)
