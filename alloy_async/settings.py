"""Everything that can be set: one frozen model, whose fields are the documentation.

Arguments of ``configure`` win over environment variables, these win over defaults. Each field that is text, a number
or a boolean can come from the environment as ``ALLOY_`` and its name in capitals; booleans are exactly ``true`` or
``false``, because ``ALLOY_OPT_IN_ENABLED=off`` must never be a guess.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, SecretStr, ValidationError
from pydantic.alias_generators import to_camel

from ._options import BROWSER_ONLY, ConfigureOptions, Context, EventFilter, nearest
from .errors import ConfigurationError

__all__ = ["BROWSER_ONLY", "ConfigureOptions", "EventFilter", "Settings", "nearest"]

DEFAULT_EDGE = "https://edge.adobedc.net"
AUTHENTICATED_HOST = "server.adobedc.net"
"""Where events with credentials go by default; it takes v2 and nothing else. Source: Edge Network, hosts."""

TOKEN_PATH = "/ims/token/v3"  # noqa: S105 - a path
LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")

SYNONYMS = {
    "datastreamId": "config_id",
    "datastream_id": "config_id",
    "edgeConfigId": "config_id",
    "orgId": "ims_org_id",
    "org_id": "ims_org_id",
    "logEnabled": "debug_enabled",
}
"""Other spellings of an option, from today's and the 2019 JavaScript SDK."""


def _no_blank_or_control(value: object) -> object:
    # Half a surrogate pair is not printable.
    if isinstance(value, str) and (" " in value or not value.isprintable()):
        raise ValueError("must not hold blanks, line breaks or control characters")
    return value


def _no_blank_in_secret(value: object) -> object:
    # One that was copied with its line break would be refused far away, and nobody could see why.
    _no_blank_or_control(value.get_secret_value() if isinstance(value, SecretStr) else value)
    return value


def _plain_ascii(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[!-~]+", value):
        raise ValueError(
            "must be ASCII letters, digits or punctuation, at least one, since it becomes a header"
        )
    return value


def _split_scopes(value: object) -> object:
    """Take what the console shows, commas and all."""
    if isinstance(value, str):
        return [scope.strip() for scope in value.split(",")] if value.strip() else ()
    return value


def _one_scope(value: object) -> object:
    """Source: RFC 6749, section 3.3, without the comma, which separates scopes here."""
    if isinstance(value, str) and not re.fullmatch(r"[!#-+\--\[\]-~]+", value):
        raise ValueError(
            'must be names such as openid, in ASCII, separated by commas, none empty, without " or \\'
        )
    return value


def _no_null_character(value: object) -> object:
    if "\0" in str(value):
        raise ValueError("must not hold null characters")
    return value


def _seconds_not_boolean(value: object) -> object:
    if isinstance(value, (bool, str)):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports ValueError, not TypeError
    return value


Identifier = Annotated[
    str, BeforeValidator(_no_blank_or_control), Field(strict=True, min_length=1, max_length=256)
]
ClientId = Annotated[str, BeforeValidator(_plain_ascii), Field(strict=True, max_length=256)]
Secret = Annotated[
    SecretStr, BeforeValidator(_no_blank_in_secret), Field(strict=True, min_length=1, max_length=4_096)
]
Scope = Annotated[str, BeforeValidator(_one_scope), Field(strict=True, max_length=256)]
Scopes = Annotated[tuple[Scope, ...], BeforeValidator(_split_scopes)]
UsablePath = Annotated[Path, BeforeValidator(_no_null_character)]
Seconds = Annotated[FiniteFloat, BeforeValidator(_seconds_not_boolean), Field(gt=0)]
Count = Annotated[int, Field(strict=True, gt=0)]
Boolean = Annotated[bool, Field(strict=True)]


class Settings(BaseModel):
    """What ``configure`` was told, checked. Every time is in seconds, every size in bytes."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    config_id: Identifier = Field(
        description="Datastream that receives the events; also called datastream_id."
    )
    ims_org_id: Identifier = Field(description="Organisation that owns the datastream; also called org_id.")
    opt_in_enabled: Boolean = Field(
        False,
        description="Whether commands wait for the visitor's consent. Off by default, as in the JavaScript SDK.",
    )
    endpoint: str | None = Field(
        None,
        strict=True,
        description="Scheme and host of the collection endpoint, with optional port; a path replaces edge_base_path.",
    )
    edge_domain: str | None = Field(
        None,
        strict=True,
        description="Host of the collection endpoint, with optional port; https, or http on loopback.",
    )
    edge_base_path: str = Field(
        "ee", strict=True, description="First part of every path at the collection endpoint."
    )
    allow_insecure: Boolean = Field(False, description="Whether plain http is allowed to another machine.")
    on_before_event_send: EventFilter | None = Field(
        None,
        description="Called once for each event after consent, sync or async; may change it, or return False to "
        "withhold it.",
    )
    hooks: tuple[Callable[[Any], object], ...] = Field(
        (), description="Called with a frozen record at each moment of a command's life (alloy_async.hooks)."
    )
    context: tuple[Context, ...] = Field(
        (),
        description="Automatic context to add: placeContext is this process's local time. web, device and environment "
        "come with a visitor's request; a process alone knows nothing to put there.",
    )
    errors_enabled: Boolean = Field(
        True,
        description="Whether a failed command ends with its error; False: it ends with None and a log line.",
    )
    debug_enabled: Boolean = Field(
        False, description="Whether this instance logs each step (logger alloy_async.NAME)."
    )

    state_dir: UsablePath | None = Field(
        None,
        description="Folder for the files of choices, identities and events; default: the user's state folder.",
    )
    store: Literal["sqlite", "memory", "redis"] | Any = Field(
        "sqlite",
        description='Where choices are kept: "sqlite", "memory", "redis" (shared by processes on several machines), or '
        "an object with the Store protocol.",
    )
    redis_url: Secret | None = Field(
        None,
        description='Redis or Valkey for store="redis" and outbox="redis": redis://, rediss:// or unix://, with user and '
        "password where it asks for them.",
    )
    preference_max_age: Seconds = Field(
        15_552_000.0, description="Seconds a choice is valid; then it is asked again."
    )
    max_parked: Count = Field(100_000, description="Commands that may wait for consent at once.")
    max_parked_bytes: Count = Field(
        134_217_728, description="Bytes of events that may wait for consent at once."
    )
    parked_ttl: Seconds = Field(
        86_400.0,
        description="Seconds a command of the instance itself waits for consent before ConsentTimeout.",
    )
    max_visitors: Count = Field(
        100_000,
        description="Visitors that are kept in memory; of more, those go first that were not heard of for longest. So do "
        "those that were not heard of for visitor_parked_ttl seconds.",
    )
    visitor_max_parked: Count = Field(
        100,
        description="Commands of one visitor that may wait for consent at once; max_parked holds for all together.",
    )
    visitor_parked_ttl: Seconds = Field(
        1_800.0, description="Seconds a visitor's command waits for consent before ConsentTimeout."
    )
    parked_wait: Seconds = Field(
        0.2,
        description="Seconds that the future of a visitor's parked command waits for the choice before it ends with "
        "StillParked; an event, and customer ids, stay parked.",
    )

    outbox: Literal["memory", "sqlite", "redis"] | UsablePath | Any = Field(
        "memory",
        description='Where released events wait for the edge: "memory", "sqlite" (a file in state_dir, which survives '
        'kill -9), "redis" (shared by processes on several machines), the path of such a file, or an object with the '
        "Outbox protocol.",
    )
    when_outbox_fails: Literal["refuse", "wait", "local"] = Field(
        "refuse",
        description='What becomes of an event when a durable outbox cannot be written: "refuse" ends it with OutboxError; '
        'with "wait" it waits in memory, with "local" on the disk of this machine (outbox.sqlite3 in state_dir), until the '
        "outbox is back, within max_queued and delivery_timeout.",
    )
    relay: Boolean = Field(
        False,
        description="Whether released events are only stored in the outbox, for `alloy-async relay` to send.",
    )
    max_queued: Count = Field(100_000, description="Events that may wait for the wire at once.")
    max_queued_bytes: Count = Field(
        134_217_728, description="Bytes of events that may wait for the wire at once."
    )
    delivery_timeout: Seconds | None = Field(
        None,
        description="Seconds from its release in which an event must be delivered, waiting and retries included; "
        "default: 300 in memory, 604 800 (a week) in a durable outbox.",
    )
    max_attempts: Count | None = Field(
        None,
        description="Times the edge is tried with an event; default: 5 in memory, without limit in a durable outbox.",
    )
    max_retry_after: Seconds = Field(
        300.0, description="Seconds of an answer's Retry-After that are obeyed at most."
    )
    max_in_flight: Count = Field(
        8, description="Requests on the wire at once; httpx gets slower beyond about 10."
    )
    max_body_bytes: Annotated[int, Field(strict=True, ge=1_024, le=65_536)] = Field(
        65_536, description="Bytes of one request's body; the edge takes at most 65 536."
    )
    max_answer_bytes: Count = Field(
        1_048_576, description="Bytes of one answer that are read, after decompression."
    )
    linger: Seconds = Field(
        0.015,
        description="Seconds that the oldest waiting event waits for company while other requests are on the wire.",
    )
    ordered: Boolean = Field(
        False,
        description="Whether a request waits for the end of the one before with events of the same visitor, so that these "
        "also arrive in order.",
    )
    request_timeout: Seconds = Field(
        10.0, description="Seconds without progress after which a request fails."
    )
    connect_timeout: Seconds = Field(5.0, description="Seconds to connect, name look-up and TLS included.")
    client_id: ClientId | None = Field(
        None,
        description="Client of the project in the developer console; with client_secret events go from server to server "
        "(v2).",
    )
    client_secret: Secret | None = Field(
        None, description="Secret of client_id, text or SecretStr; it is never shown."
    )
    scopes: Scopes = Field(
        (),
        description="What the access token is asked for: the scopes that the console shows, comma separated or a list.",
    )
    ims_host: str = Field(
        "ims-na1.adobelogin.com",
        strict=True,
        description="Host that hands out access tokens, with optional port; https, or http on loopback.",
    )
    proxy: str | None = Field(
        None,
        strict=True,
        repr=False,  # it may hold a password
        description="URL of an HTTP proxy; default: HTTPS_PROXY and friends.",
    )
    ca_bundle: UsablePath | None = Field(
        None, description="File with the certificates to trust; default: SSL_CERT_FILE, then certifi."
    )
    transport: Literal["httpx", "aiohttp"] | Any = Field(
        "httpx",
        description='The HTTP layer: "httpx", "aiohttp" (faster, needs the extra aiohttp), or an object with the '
        "Transport protocol.",
    )
    client: Any = Field(None, description="An httpx.AsyncClient to send with; it stays yours to close.")
    clock: Any = Field(None, description="Replaces time, for tests: an object with the Clock protocol.")
    ids: Any = Field(None, description="Replaces UUIDs, for tests: a callable that returns text.")

    @classmethod
    def resolve(cls, options: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Self:
        """Make settings from what a caller gave, the environment, and the defaults, in this order.

        Args:
            options: names as in Python or as in JavaScript; see ``BROWSER_ONLY`` for what is ignored.
            environment: variables to look at; default: those of the process.

        Raises:
            ConfigurationError: names the option and what to do.
        """
        given = _canonical(options)
        found = _from_environment(os.environ if environment is None else environment)
        if {
            "endpoint",
            "edge_domain",
        } & given.keys():  # one host given in code replaces either from the environment
            found = {name: value for name, value in found.items() if name not in {"endpoint", "edge_domain"}}
        settings = _validate(cls, found | given)
        _check_credentials(settings)
        _check_redis(settings)
        settings.base_url()  # refuse an endpoint that cannot be used now, not at the first event
        settings.token_url()
        return settings

    @property
    def authenticated(self) -> bool:
        """Whether events go from server to server, with an access token (v2)."""
        return self.client_id is not None

    def base_url(self) -> str:
        """Return what every request's address starts with, for example ``https://edge.adobedc.net/ee``.

        With credentials the default host is another one, ``server.adobedc.net``.

        Raises:
            ConfigurationError: the endpoint, the domain or the base path cannot be used.
        """
        if self.endpoint is not None and self.edge_domain is not None:
            raise ConfigurationError(
                "endpoint and edge_domain both name a host; give one of them.", option="endpoint"
            )
        if self.endpoint is not None:
            return _endpoint_url(self.endpoint, self.edge_base_path, insecure=self.allow_insecure)
        default = f"https://{AUTHENTICATED_HOST}" if self.authenticated else DEFAULT_EDGE
        host = default if self.edge_domain is None else _domain_url(self.edge_domain, "edge_domain")
        return f"{host}/{_base_path(self.edge_base_path)}"

    def open_url(self) -> str:
        """Return what the address of a request starts with that has no authenticated form.

        That is ``base_url``, but never ``server.adobedc.net``, which would not take it.
        """
        url = urlsplit(self.base_url())
        return f"{DEFAULT_EDGE}{url.path}" if url.hostname == AUTHENTICATED_HOST else url.geturl()

    def token_url(self) -> str:
        """Return the address of the identity service.

        Raises:
            ConfigurationError: the host cannot be used.
        """
        return _domain_url(self.ims_host, "ims_host") + TOKEN_PATH

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values, without objects, a proxy's password or the client's secret."""
        either = ("store", "outbox", "transport")  # a word, or an object
        # A SecretStr becomes asterisks.
        plain = self.model_dump(exclude=_OBJECTS | {"proxy", *either}, mode="json")
        return plain | {name: _describe(getattr(self, name)) for name in either}


def _describe(value: object) -> str:
    return str(value) if isinstance(value, (str, Path)) else type(value).__name__


S = TypeVar("S", bound=Settings)


def _spellings() -> dict[str, str]:
    """Map every spelling of every option to its field."""
    fields = Settings.model_fields
    return {name: name for name in fields} | {to_camel(name): name for name in fields} | SYNONYMS


def _canonical(options: Mapping[str, Any]) -> dict[str, Any]:
    spellings = _spellings()
    result: dict[str, Any] = {}
    for option, value in options.items():
        if option in BROWSER_ONLY:
            continue
        field = spellings.get(option)
        if field is None:
            hint = nearest(option, spellings)
            raise ConfigurationError(f"{str(option)[:100]}: unknown option.{hint}", option=str(option)[:100])
        if field in result:
            raise ConfigurationError(
                f"{option}: given twice, under two spellings; give it once.", option=option
            )
        result[field] = value
    return result


_OBJECTS = {
    "on_before_event_send",
    "hooks",
    "client",
    "clock",
    "ids",
}  # no text can stand for these


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    names = {f"ALLOY_{name.upper()}": name for name in Settings.model_fields if name not in _OBJECTS}
    names |= {"ALLOY_DATASTREAM_ID": "config_id", "ALLOY_ORG_ID": "ims_org_id"}
    return {
        name: _from_text(name, variable, environment[variable])
        for variable, name in names.items()
        if environment.get(variable) or (variable in environment and _is_boolean(name))
    }


def _is_boolean(name: str) -> bool:
    return isinstance(Settings.model_fields[name].default, bool)


def _number(name: str) -> type[int | float] | None:
    """Return which number an option takes, also one whose default is None; None where it takes none."""
    annotation = Settings.model_fields[name].annotation
    for one in (annotation, *get_args(annotation)):  # of the kinds of ``float | None``
        kind = next(iter(get_args(one)), one) if get_origin(one) is Annotated else one
        if kind is int or kind is float:
            return kind
    return None


def _from_text(name: str, variable: str, text: str) -> Any:
    if _is_boolean(name):
        if text not in {"true", "false"}:
            raise ConfigurationError(f"{variable}: must be exactly true or false.", option=variable)
        return text == "true"
    kind = _number(name)
    if kind is not None:
        return _number_from_text(variable, text, kind)
    return tuple(text.split(",")) if name == "context" else text


def _number_from_text(variable: str, text: str, kind: type[int | float]) -> float:
    try:
        return kind(text)
    except ValueError:
        pass  # raised below, outside, so that the value does not travel in the error's context
    raise ConfigurationError(f"{variable}: must be a number.", option=variable)


def _validate(cls: type[S], values: dict[str, Any]) -> S:
    problem = None
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)
    # Raised out here: pydantic's own error holds what was given, and must not travel as this one's context.
    sentences = [_sentence(entry["loc"], entry["type"], entry["msg"]) for entry in problem]
    raise ConfigurationError(" ".join(dict.fromkeys(sentences)), option=str(problem[0]["loc"][0]))


def _sentence(location: tuple[int | str, ...], kind: str, message: str) -> str:
    option = str(location[0])
    if kind == "missing":
        return f"{option}: is required; give {option}=… or set ALLOY_{option.upper()}."
    message = message.removeprefix("Value error, ")
    return f"{option}: {message[:1].lower()}{message[1:]}. ({Settings.model_fields[option].description})"


def _base_path(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*", path) or ".." in path:
        raise ConfigurationError(
            "edge_base_path: must be plain path parts, for example ee or ee-pre-prd; no query, no leading slash.",
            option="edge_base_path",
        )
    return path


def _check_redis(settings: Settings) -> None:
    """Refuse Redis without its address, and a relay or a fallback without Redis."""
    for option in ("store", "outbox"):
        if getattr(settings, option) == "redis" and settings.redis_url is None:
            raise ConfigurationError(
                f'redis_url: is required with {option}="redis"; give redis_url=… or set ALLOY_REDIS_URL.',
                option="redis_url",
            )
    if settings.when_outbox_fails == "local" and (
        settings.outbox != "redis" and isinstance(settings.outbox, (str, Path))
    ):
        raise ConfigurationError(
            'when_outbox_fails: "local" is for an outbox that may be out of reach; set outbox="redis", or "wait".',
            option="when_outbox_fails",
        )
    if settings.relay and settings.outbox == "memory":
        raise ConfigurationError(
            'relay: only what is stored where a relay finds it can be left to one; set outbox="redis".',
            option="relay",
        )


def _check_credentials(settings: Settings) -> None:
    """Refuse half of the credentials, and an organisation that cannot be told in a header.

    Source: Edge Network, authentication: the header x-gw-ims-org-id is the organisation with its ``@``.
    """
    if settings.client_id is None and settings.client_secret is None:
        return
    for option, other in (("client_id", "client_secret"), ("client_secret", "client_id")):
        if getattr(settings, option) is None:
            raise ConfigurationError(
                f"{option}: is required with {other}; give {option}=… or set ALLOY_{option.upper()}.",
                option=option,
            )
    if not re.fullmatch(r"[!-?A-~]+@[!-?A-~]+", settings.ims_org_id):
        raise ConfigurationError(
            "ims_org_id: with client_id it must be written as the console shows it, in ASCII and with its @, "
            "for example …@AdobeOrg.",
            option="ims_org_id",
        )


def _domain_url(domain: str, option: str) -> str:
    if "://" in domain or "/" in domain:
        whole = "; to give a whole address use endpoint" if option == "edge_domain" else ""
        raise ConfigurationError(
            f"{option}: must be a host with optional port, without scheme or path{whole}.", option=option
        )
    url = _split(f"https://{domain}", option)
    if url.netloc != domain:
        raise ConfigurationError(
            f"{option}: must be a host with optional port, nothing after it.", option=option
        )
    scheme = "http" if LOOPBACK.fullmatch(url.hostname or "") else "https"
    return f"{scheme}://{url.netloc}"


def _endpoint_url(endpoint: str, base_path: str, *, insecure: bool) -> str:
    url = _split(endpoint, "endpoint")
    if url.scheme not in {"http", "https"}:
        raise ConfigurationError(
            "endpoint: must start with https:// (or http:// on loopback).", option="endpoint"
        )
    if url.query or url.fragment:
        raise ConfigurationError("endpoint: must not have a query or a fragment.", option="endpoint")
    if url.scheme == "http" and not insecure and not LOOPBACK.fullmatch(url.hostname or ""):
        raise ConfigurationError(
            "endpoint: plain http would show visitors' data to the network; use https, "
            "or allow_insecure=True if that is what you want.",
            option="endpoint",
        )
    path = _base_path(url.path.strip("/") or base_path)
    return f"{url.scheme}://{url.netloc}/{path}"


_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:\d{1,5})?")


def _split(address: str, option: str) -> SplitResult:
    problem = f"{option}: is not a host name or address with an optional port from 1 to 65535."
    url = None
    with contextlib.suppress(ValueError):
        split = urlsplit(address)
        url = split if _HOST.fullmatch(split.netloc) is not None and split.port != 0 else None
    if url is None or re.search(r"[\s\\\x00-\x1f]", address) or len(address) > 2_048:
        raise ConfigurationError(problem, option=option)
    return url
