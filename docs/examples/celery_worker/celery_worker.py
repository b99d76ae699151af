"""Tasks of Celery that record what they did for a customer, if the customer has agreed.

Start it with ``celery --app celery_worker worker``. Choices are in Redis, where the shop keeps them, and Redis is the broker
too; ``ALLOY_REDIS_URL`` says where. A task needs no more than the customer's key.

Celery ends its children without the interpreter's exit, when it is told to stop, and when it replaces them: hence ``close``. A
child that is killed, by a hard time limit or a cold shutdown, closes nothing; where that must lose nothing add
``"outbox": "redis"`` to ``SETTINGS``.
"""

from __future__ import annotations

import logging
import os

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from alloy_async.blocking import BlockingAlloy

SETTINGS = {"config_id": "ebebf826", "ims_org_id": "ADB3@AdobeOrg", "opt_in_enabled": True, "store": "redis"}

log = logging.getLogger("celery_worker")

app = Celery("shop", broker=os.environ["ALLOY_REDIS_URL"])
app.conf.task_ignore_result = True

alloy = BlockingAlloy(
    "shop"
)  # the parent makes it and configures nothing: each child has a thread of its own


@worker_process_init.connect
def configure(**_) -> None:
    alloy.configure(**SETTINGS)


@worker_process_shutdown.connect
def close(**_) -> None:
    log.info("books: %s", alloy.close(grace=3.0))


@app.task
def ship(customer: str, order: int) -> None:
    """Ship an order, and record it; the task does not wait for the network."""
    alloy.visitor(customer).event(type="commerce.orderShipped", data={"order": order})
    log.info("shipped: %s", order)
