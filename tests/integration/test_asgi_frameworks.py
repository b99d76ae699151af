"""Every kind of response in every framework: what the middleware writes must be in it."""

from __future__ import annotations

import httpx
import pytest
from browser import NAMES, Browser, delivered, respond, running, set_cookies
from common import IDS

from alloy_async import Alloy, ConfigurationError
from alloy_async.asgi import AlloyMiddleware, ConsentEndpoint, RequestVisitor, lifespan, request_visitor
from alloy_async.testing import RecordingEdge


def plain(record):
    async def app(scope, receive, send):
        visitor = request_visitor(scope)
        kind = scope["path"].strip("/")
        await record(visitor, kind)
        if kind == "stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in (b"a", b"b"):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        else:
            await respond(send, {"own": 202, "redirect": 303, "error": 418, "background": 200}[kind])
        if kind == "background":
            visitor.event(type="background")

    return app


def starlette(record):
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.exceptions import HTTPException
    from starlette.responses import PlainTextResponse, RedirectResponse, StreamingResponse
    from starlette.routing import Route

    async def endpoint(request):
        visitor = request_visitor(request.scope)
        kind = request.path_params["kind"]
        await record(visitor, kind)
        if kind == "error":
            raise HTTPException(418)

        async def later():
            visitor.event(type="background")

        return {
            "own": lambda: PlainTextResponse("x", 202),
            "stream": lambda: StreamingResponse(pieces()),
            "redirect": lambda: RedirectResponse("/", 303),
            "background": lambda: PlainTextResponse("x", background=BackgroundTask(later)),
        }[kind]()

    return Starlette(routes=[Route("/{kind}", endpoint)])


def fastapi(record):
    from fastapi import BackgroundTasks, FastAPI, HTTPException, Response
    from fastapi.responses import RedirectResponse, StreamingResponse

    from alloy_async.fastapi import AlloyVisitor

    app = FastAPI()
    # Where the annotations of an endpoint are texts, FastAPI looks for their names here.
    endpoint_names = {"AlloyVisitor": AlloyVisitor, "BackgroundTasks": BackgroundTasks}

    async def endpoint(kind: str, visitor, tasks):
        await record(visitor, kind)
        if kind == "error":
            raise HTTPException(418)
        if kind == "background":
            tasks.add_task(later, visitor)
            return {}
        return {
            "own": lambda: Response("x", 202),
            "stream": lambda: StreamingResponse(pieces()),
            "redirect": lambda: RedirectResponse("/", 303),
        }[kind]()

    async def later(visitor):
        visitor.event(type="background")

    endpoint.__annotations__ = {
        "kind": str,
        "visitor": endpoint_names["AlloyVisitor"],
        "tasks": endpoint_names["BackgroundTasks"],
    }
    app.get("/{kind}")(endpoint)
    return app


def litestar(record):
    from litestar import Litestar, Request, get
    from litestar.background_tasks import BackgroundTask
    from litestar.exceptions import HTTPException
    from litestar.response import Redirect, Response, Stream

    async def endpoint(request):
        visitor = request_visitor(request.scope)
        kind = request.path_params["kind"]
        await record(visitor, kind)
        if kind == "error":
            raise HTTPException(status_code=418)

        async def later():
            visitor.event(type="background")

        return {
            "own": lambda: Response("x", status_code=202),
            "stream": lambda: Stream(pieces()),
            "redirect": lambda: Redirect("/", status_code=303),
            "background": lambda: Response("x", background=BackgroundTask(later)),
        }[kind]()

    endpoint.__annotations__ = {"request": Request, "return": Response}
    return Litestar([get("/{kind:str}")(endpoint)], openapi_config=None, logging_config=None)


def quart(record):
    from quart import Quart, Response, abort, redirect, request

    app = Quart("shop")

    @app.get("/<kind>")
    async def endpoint(kind):
        visitor = request_visitor(request.scope)
        await record(visitor, kind)
        if kind == "error":
            abort(418)
        if kind == "background":

            async def later():
                visitor.event(type="background")

            app.add_background_task(later)
        return {
            "own": lambda: Response("x", 202),
            "stream": pieces,
            "redirect": lambda: redirect("/", 303),
            "background": lambda: "x",
        }[kind]()

    return app


def django(record):
    import types

    from django import conf, urls
    from django.core import asgi, exceptions
    from django.http import HttpResponse, HttpResponseRedirect, StreamingHttpResponse

    async def view(request, kind):
        visitor = request_visitor(request.scope)
        await record(visitor, kind)
        if kind == "error":
            raise exceptions.PermissionDenied
        if kind == "background":
            visitor.event(type="background")
        return {
            "own": lambda: HttpResponse("x", status=202),
            "stream": lambda: StreamingHttpResponse(pieces()),
            "redirect": lambda: HttpResponseRedirect("/", status=303),
            "background": lambda: HttpResponse("x"),
        }[kind]()

    pages = types.ModuleType("pages")
    pages.urlpatterns = [urls.path("<kind>", view)]
    if not conf.settings.configured:
        conf.settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="x" * 50, ROOT_URLCONF=pages)
    conf.settings.ROOT_URLCONF = pages
    urls.clear_url_caches()
    return asgi.get_asgi_application()


async def pieces():
    for piece in (b"a", b"b"):
        yield piece


@pytest.mark.parametrize("kind", ["own", "stream", "redirect", "error", "background"])
@pytest.mark.parametrize(
    "framework", [plain, starlette, fastapi, litestar, quart, django], ids=lambda make: make.__name__
)
async def test_cookies_travel_with_every_kind_of_response(edge, framework, kind):
    """Whatever answers, in whatever framework: the choice and the identity are in the response, the events at the edge."""
    if framework is not plain:
        pytest.importorskip(framework.__name__)

    async def record(visitor, kind):
        assert isinstance(visitor, RequestVisitor)
        assert await visitor.opt_in(purposes="all") == "all"
        visitor.event(type=kind)

    async with running(framework(record), edge) as (app, alloy), Browser(app) as browser:
        answer = await browser.get(f"/{kind}")
        await delivered(alloy)
    error = 403 if framework is django else 418
    assert answer.status_code == {"own": 202, "redirect": 303, "error": error}.get(kind, 200)
    assert set(set_cookies(answer)) == {"consent", "choice", "fpid"}
    assert edge.event_types == [kind, *["background"] * (kind == "background")]
    ids = {event["xdm"]["identityMap"]["FPID"][0]["id"] for event in edge.events}
    assert ids == {browser.cookies[NAMES.fpid]}


async def test_the_router_of_fastapi_takes_a_choice(edge):
    """It is mounted like any other, with a prefix."""
    pytest.importorskip("fastapi")
    from fastapi import FastAPI

    from alloy_async.fastapi import consent_router

    app = FastAPI()
    app.include_router(consent_router("/choice"), prefix="/privacy")
    async with running(app, edge) as (wrapped, _), Browser(wrapped) as browser:
        answer = await browser.post("/privacy/choice", data={"purposes": "all", "next": "/"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert browser.told() == ("general=in", "all")
        assert (await browser.get("/privacy/choice")).status_code == 405
        evil = await browser.post(
            "/privacy/choice", json={"purposes": "none"}, headers={"sec-fetch-site": "cross-site"}
        )
        assert evil.status_code == 403


async def test_the_endpoint_is_a_route_of_starlette(edge):
    """An ASGI application is taken as it is."""
    pytest.importorskip("starlette")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    async with Alloy() as alloy:
        await alloy.configure(**IDS, opt_in_enabled=True, transport=RecordingEdge(), store="memory")
        app = Starlette(
            routes=[Route("/consent", ConsentEndpoint(), methods=["POST"])],
            middleware=[Middleware(AlloyMiddleware, alloy=alloy)],
        )
        async with Browser(app) as browser:
            assert (await browser.choose("none")).status_code == 204
            assert browser.told() == ("general=out", "none")


async def test_a_missing_middleware_is_said_by_the_dependency():
    """Where a developer sees it."""
    pytest.importorskip("fastapi")
    from fastapi import FastAPI

    from alloy_async.fastapi import AlloyVisitor

    app = FastAPI()

    async def endpoint(visitor):
        return {}

    endpoint.__annotations__ = {"visitor": AlloyVisitor}
    app.get("/")(endpoint)
    async with Browser(app) as browser:
        with pytest.raises(ConfigurationError, match="AlloyMiddleware"):
            await browser.get("/")


@pytest.mark.integration
def test_a_real_server_a_real_client_and_an_edge_on_the_desk(tmp_path):
    """From the lifespan to the last event: uvicorn runs it all, and closing the server delivers what was released."""
    pytest.importorskip("uvicorn")
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from alloy_async.devserver import DevelopmentEdge, create_app, serving

    async def page(request):
        visitor = request_visitor(request.scope)
        visitor.event(type="web.webpagedetails.pageViews")
        return PlainTextResponse(await visitor.get_purposes())

    desk, alloy = DevelopmentEdge(), Alloy()
    with serving(create_app(desk)) as edge:
        app = Starlette(
            routes=[Route("/", page), Route("/consent", ConsentEndpoint(), methods=["POST"])],
            middleware=[Middleware(AlloyMiddleware, alloy=alloy, secure=False)],
            lifespan=lambda app: lifespan(
                alloy, **IDS, opt_in_enabled=True, endpoint=edge.url, state_dir=tmp_path
            ),
        )
        with serving(app) as shop, httpx.Client(base_url=shop.url, trust_env=False) as browser:
            assert browser.get("/").text == "pending"
            chosen = browser.post(
                "/consent", data={"purposes": "all", "next": "/"}, headers={"origin": shop.url}
            )
            assert chosen.status_code == 303
            assert browser.get("/").text == "all"
            identity = browser.cookies[NAMES.fpid]
    assert [one["event"]["xdm"]["identityMap"]["FPID"][0]["id"] for one in desk.events] == [identity]
