"""What to do about a refused request, for each code of the edge."""

from __future__ import annotations

__all__ = ["advice_for"]

_AGAIN = "Nothing is wrong with the request: send it again later, with growing pauses."
_DATASTREAM = "Correct the datastream in Data Collection; the request itself is right."
_TOKEN = "Fetch a new access token with the client credentials"  # noqa: S105 - a sentence

# By the four digits: the edge answers some codes with more than one HTTP status.
# Source: Adobe Experience Platform Edge Network API, list of error codes; what to do is ours.
_BY_NUMBER = {
    "0000": _AGAIN,
    "0001": "The edge failed unexpectedly. Do not repeat the request blindly; try it by hand once, then report it.",
    "0002": "Add the datastream id to the URL: 'configId' in v1, 'datastreamId' in v2.",
    "0003": "Compare the datastream id with the one in Data Collection; ids of other organisations do not work.",
    "0004": "Enable the datastream in Data Collection, or send to another one.",
    "0010": _DATASTREAM,
    "0011": "The sandbox of the datastream could not be looked up: send it again, then check the datastream.",
    "0012": "Set an existing sandbox in the datastream.",
    "0013": "Create the identity namespace in the organisation, or correct its code in 'identityMap'.",
    "0100": "Look for numbers or text that a JSON reader cannot hold.",
    "0101": "Send JSON in UTF-8: double quotes, no trailing comma, no NaN. Let a JSON library write it.",
    "0102": "Correct the field that the detail names; its type or value is not what the edge takes there.",
    "0103": "Add the field that the detail names.",
    "0104": "Correct what 'report.errors' lists.",
    "0105": "Correct the request; without a report, compare it with one that is taken.",
    "0106": "Send the header 'Content-Type: application/json'.",
    "0107": "Add the query parameter that the detail names.",
    "0108": "Correct the query parameter that the detail names; its type is wrong.",
    "0109": "Send a body. A proxy in between may have dropped it, or the client closed too early.",
    "0110": "Set 'meta.state.domain', or leave out 'meta.state.cookiesEnabled'.",
    "0111": "Send the header 'Content-Type: application/json'.",
    "0112": "Send fewer events in one request, or smaller ones: a body holds 64 KB.",
    "0113": "Correct 'meta.configOverrides': existing services only, and never 'enabled: true'.",
    "0200": _AGAIN,
    "0201": _AGAIN,
    "0202": _AGAIN,
    "0203": _AGAIN,
    "0204": "The request was taken. Read the warning of the upstream, and correct its part of the datastream.",
    "0205": _AGAIN,
    "0300": "Consent could not be checked: send it again later, and send nothing else of this visitor until then.",
    "0301": "The visitor gave no consent, so the event was ignored. Nothing to repair; do not send it again.",
    "0302": "The visitor opted out of all advertising; this choice cannot be changed here.",
    "0303": "Ask for 'ECID' (or 'CORE', in a browser) in 'query.identity.fetch'.",
    "0304": "Leave out the identities that this endpoint does not take.",
    "0305": "Give every identity an 'id' that is not empty, or leave the identity out.",
    "0306": "Mark exactly one identity of each event with 'primary': true.",
    "0307": "The choice could not be stored: send it again, and hold events back until it is.",
    "0308": "Correct the id's form: an FPID is a UUIDv4, an ECID has 38 digits.",
    "0400": "Requests from this country are not allowed for the organisation. Do not send them again.",
    "0500": "Send 'Authorization: Bearer …', 'x-api-key' and 'x-gw-ims-org-id'.",
    "0501": "Use a token of a server-to-server credential, not of a person.",
    "0502": f"{_TOKEN}; this one was damaged or comes from another environment.",
    "0503": f"{_TOKEN}; this one has expired.",
    "0504": "Add the Experience Platform API to the credential, and its product profile.",
    "0505": f"{_TOKEN}, and ask for the scope 'acp.foundation' among others.",
    "0506": "Give the credential's product profile permission to write to the sandbox.",
}  # fmt: skip

# No code of the edge is known for these; they are plain HTTP.
_BY_STATUS = {
    "403": "The edge does not take this request from here. Do not send it again.",
    "404": "Correct the path: /ee/v1/interact, for example. The base path is an option of both sides.",
    "405": "Send it with POST.",
    "503": _AGAIN,
}

_UNKNOWN = "Read the detail of the answer; the code is not a documented one."


def advice_for(code: str) -> str:
    """Say what to do about a refused request.

    Args:
        code: as in a `Problem`: ``0306-400``, whatever its status, or a bare HTTP status; a whole problem ``type``
            is understood too.
    """
    short = code.rpartition("EXEG-")[2]
    return _BY_STATUS.get(short) or _BY_NUMBER.get(short.partition("-")[0], _UNKNOWN)
