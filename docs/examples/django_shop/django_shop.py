"""A shop with Django in one file: a middleware makes the visitor's view, the pages wait for nobody.

Start it with ``python django_shop.py runserver``, or with ``gunicorn --threads 8 django_shop``.
"""

from __future__ import annotations

import os
import sys
import uuid
from functools import cache

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseBadRequest
from django.shortcuts import redirect
from django.template import engines
from django.urls import path
from django.views.decorators.http import require_POST

from alloy_async.blocking import BlockingAlloy

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    SECRET_KEY=os.environ.get("SECRET_KEY") or os.urandom(32).hex(),
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        f"{__name__}.VisitorMiddleware",
    ],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
)


@cache
def get_alloy() -> BlockingAlloy:
    """Return the instance of this process; made when first asked for, so that management commands make none."""
    alloy = BlockingAlloy("shop")
    alloy.configure(config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True)
    return alloy


PAGE = """
<h1>Teapot</h1>
<form method="post" action="/checkout">{% csrf_token %}<button>Buy</button></form>
{% if not asked %}
<form method="post" action="/consent">{% csrf_token %}
  May we record what you look at?
  <button name="purposes" value="all">Yes</button> <button name="purposes" value="none">No</button>
</form>
{% endif %}
"""


class VisitorMiddleware:
    """Gives each request its view of the visitor; key and choice are in the session, which Django signs."""

    def __init__(self, get_response) -> None:
        self.get_response = get_response
        self.alloy = get_alloy()

    def __call__(self, request):
        key = request.session.setdefault("visitor", str(uuid.uuid4()))
        purposes, seen_at = request.session.get(
            "choice", (None, None)
        )  # it may have been made in another worker
        page = {"webPageDetails": {"URL": request.build_absolute_uri(request.path)}}
        request.visitor = self.alloy.visitor(key, purposes=purposes, seen_at=seen_at, context={"web": page})
        return self.get_response(request)


def product(request):
    request.visitor.event(
        type="web.webpagedetails.pageViews"
    )  # parked, sent or refused: the page does not wait
    page = engines["django"].from_string(PAGE)
    return HttpResponse(page.render({"asked": "choice" in request.session}, request))


@require_POST
def checkout(request):
    order = {"priceTotal": 59.9, "currencyCode": "EUR"}
    request.visitor.event(type="commerce.purchases", xdm={"commerce": {"order": order}})
    return redirect("/")


@require_POST
def consent(request):
    purposes = request.POST.get("purposes")
    if purposes not in {"all", "none"}:
        return HttpResponseBadRequest()
    request.visitor.opt_in(purposes=purposes)  # waits: after the answer the choice is on disk
    request.session["choice"] = purposes, request.visitor.chosen_at
    return redirect("/")


urlpatterns = [path("", product), path("checkout", checkout), path("consent", consent)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
else:
    application = get_wsgi_application()
