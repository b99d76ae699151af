"""A shop with Flask: pages ask each visitor once, and wait for nobody.

Start it with ``flask --app flask_shop run``, or with ``gunicorn --threads 8 "flask_shop:create_app()"``.
"""

from __future__ import annotations

import os
import uuid

from flask import Flask, abort, current_app, g, redirect, render_template_string, request, session

from alloy_async.blocking import BlockingAlloy

PAGE = """
<h1>Teapot</h1>
<form method="post" action="/checkout"><button>Buy</button></form>
{% if not asked %}
<form method="post" action="/consent">
  May we record what you look at?
  <button name="purposes" value="all">Yes</button> <button name="purposes" value="none">No</button>
</form>
{% endif %}
"""


def create_app() -> Flask:
    app = Flask(__name__)
    app.secret_key = os.environ.get("SECRET_KEY") or os.urandom(32)
    app.config.update(SESSION_COOKIE_SAMESITE="Lax")
    alloy = app.extensions["alloy"] = BlockingAlloy("shop")
    alloy.configure(config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True)
    app.before_request(meet_the_visitor)
    app.add_url_rule("/", view_func=product)
    app.add_url_rule("/checkout", view_func=checkout, methods=["POST"])
    app.add_url_rule("/consent", view_func=consent, methods=["POST"])
    return app


def meet_the_visitor() -> None:
    """Make this request's view of the visitor; key and choice are in the session, which Flask signs."""
    if request.method == "POST" and "visitor" not in session:
        abort(403)  # a form on another site: what it sends comes without our cookie
    key = session.setdefault("visitor", str(uuid.uuid4()))
    purposes, seen_at = session.get("choice", (None, None))  # it may have been made in another worker
    page = {"webPageDetails": {"URL": request.base_url}}
    g.visitor = current_app.extensions["alloy"].visitor(
        key, purposes=purposes, seen_at=seen_at, context={"web": page}
    )


def product() -> str:
    g.visitor.event(type="web.webpagedetails.pageViews")  # parked, sent or refused: the page does not wait
    return render_template_string(PAGE, asked="choice" in session)


def checkout():
    order = {"priceTotal": 59.9, "currencyCode": "EUR"}
    g.visitor.event(type="commerce.purchases", xdm={"commerce": {"order": order}})
    return redirect("/", 303)


def consent():
    purposes = request.form.get("purposes")
    if purposes not in {"all", "none"}:
        abort(400)
    g.visitor.opt_in(purposes=purposes)  # waits: after the answer the choice is on disk
    session["choice"] = purposes, g.visitor.chosen_at
    return redirect("/", 303)
