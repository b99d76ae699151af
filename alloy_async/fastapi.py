"""The door to FastAPI: a dependency that hands the request's visitor to an endpoint, and a router for the choice.

The application is wrapped in ``alloy_async.asgi.AlloyMiddleware``; this module only reads what that has made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

from fastapi import APIRouter, Depends
from fastapi.requests import HTTPConnection

from .asgi import ConsentEndpoint, RequestVisitor, lifespan, request_visitor

__all__ = ["AlloyVisitor", "alloy_visitor", "consent_router", "lifespan"]


async def alloy_visitor(connection: HTTPConnection) -> RequestVisitor:
    """Return the visitor of the request, or of the websocket; a dependency.

    Endpoints must be ``async def``: those that are not run in threads, where no command can be called.

    Raises:
        ConfigurationError: the application has no ``AlloyMiddleware``.
    """
    return request_visitor(connection.scope)


AlloyVisitor: TypeAlias = Annotated[RequestVisitor, Depends(alloy_visitor)]
"""The type of an endpoint's argument that is the visitor."""


def consent_router(path: str = "/consent", *, origins: Iterable[str] = ()) -> APIRouter:
    """Return a router that takes visitors' choices; see ``ConsentEndpoint``.

    Args:
        path: where.
        origins: further origins whose pages may call it.
    """
    router = APIRouter()
    endpoint: Any = ConsentEndpoint(origins=origins)  # an ASGI application is taken too
    router.add_route(path, endpoint, methods=["POST"], name="consent", include_in_schema=False)
    return router
