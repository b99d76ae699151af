"""A development edge: a stand-in for the collection endpoint, on your desk.

It takes what a client sends, answers as the edge does, and shows what arrived::

    from alloy_async.devserver import DevelopmentEdge, create_app, serving

    edge = DevelopmentEdge(datastreams={"my-datastream"})
    with serving(create_app(edge)) as server:
        ...  # point the client's endpoint at server.url
    print(edge.events)

It listens on loopback unless told otherwise, and is a tool for people at a desk, not a service.
"""

from __future__ import annotations

from .app import create_app
from .certificate import Certificate, throw_away_certificate
from .checks import Checks
from .delivery import ConnectionFault
from .edge import DEMO_ORG, DevelopmentEdge
from .exchange import Exchange, ReceivedEvent
from .faults import Fault, FaultError, Faults
from .findings import Finding
from .jsonl import JSONLinesFile
from .messages import EdgeAnswer, EdgeRequest
from .personalization import DecisionsError
from .recorder import Past, Recorder, Sink, Window
from .server import Serving, run, serving
from .sqlite import SQLiteFile
from .xdm import UnusableSchemas, XdmSchemas

__all__ = [
    "DEMO_ORG",
    "Certificate",
    "Checks",
    "ConnectionFault",
    "DecisionsError",
    "DevelopmentEdge",
    "EdgeAnswer",
    "EdgeRequest",
    "Exchange",
    "Fault",
    "FaultError",
    "Faults",
    "Finding",
    "JSONLinesFile",
    "Past",
    "ReceivedEvent",
    "Recorder",
    "SQLiteFile",
    "Serving",
    "Sink",
    "UnusableSchemas",
    "Window",
    "XdmSchemas",
    "create_app",
    "run",
    "serving",
    "throw_away_certificate",
]
