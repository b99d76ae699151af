"""Settings: where they come from, what is refused, and what never shows."""

import logging
import re
import traceback
import typing
from decimal import Decimal
from pathlib import Path

import pytest
from common import IDS, settle
from pydantic import SecretStr, ValidationError
from pydantic.alias_generators import to_camel

from alloy_async import Alloy, ConfigurationError
from alloy_async.settings import BROWSER_ONLY, SYNONYMS, ConfigureOptions, Settings, nearest
from alloy_async.stores import MemoryStore
from alloy_async.testing import RecordingEdge

SECRET = "hush-hush"


def resolve(environment=None, /, **options) -> Settings:
    return Settings.resolve(IDS | options, environment or {})


def refusal(environment=None, /, **options) -> ConfigurationError:
    """Resolve what must be refused; whatever the reason, the error holds nothing of what was given."""
    with pytest.raises(ConfigurationError) as caught:
        resolve(environment, **options)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert SECRET not in "".join(traceback.format_exception(error)).replace(f'"{SECRET}"', "")
    return error


# Precedence


def test_arguments_win_over_the_environment_and_this_over_defaults():
    """The same option from three places: the call, then the variable, then the default."""
    environment = {"ALLOY_MAX_PARKED": "7", "ALLOY_PARKED_TTL": "60"}
    settings = resolve(environment, max_parked=3)
    assert (settings.max_parked, settings.parked_ttl, settings.max_queued) == (3, 60.0, 100_000)


def test_an_argument_in_another_spelling_wins_too():
    """A variable never meets an argument as a second spelling of the same option."""
    settings = Settings.resolve(
        {"datastreamId": "from-code", "orgId": "o"}, {"ALLOY_CONFIG_ID": "from-env", "ALLOY_ORG_ID": "e"}
    )
    assert (settings.config_id, settings.ims_org_id) == ("from-code", "o")


@pytest.mark.parametrize("option", ["delivery_timeout", "max_attempts", "linger", "max_queued"])
def test_numbers_come_from_the_environment(option):
    """Also those that are left open by default; what is none is named."""
    assert getattr(resolve({f"ALLOY_{option.upper()}": "9"}), option) == 9
    with pytest.raises(ConfigurationError, match=f"ALLOY_{option.upper()}: must be a number"):
        resolve({f"ALLOY_{option.upper()}": "nine"})


def test_the_environment_alone_is_enough():
    """Every option that is text, a number or a boolean can come from a variable."""
    environment = {
        "ALLOY_CONFIG_ID": "c",
        "ALLOY_IMS_ORG_ID": "o",
        "ALLOY_OPT_IN_ENABLED": "true",
        "ALLOY_ERRORS_ENABLED": "false",
        "ALLOY_ENDPOINT": "http://127.0.0.1:8080",
        "ALLOY_STATE_DIR": "/var/lib/x",
        "ALLOY_STORE": "memory",
        "ALLOY_CONTEXT": "web,placeContext",
        "ALLOY_LINGER": "0.25",
        "ALLOY_MAX_IN_FLIGHT": "2",
        "ALLOY_PROXY": "http://proxy.example:3128",
        "ALLOY_CA_BUNDLE": "/etc/ca.pem",
    }
    settings = Settings.resolve({}, environment)
    found = settings.model_dump(include={name.removeprefix("ALLOY_").lower() for name in environment})
    assert found == {
        "config_id": "c",
        "ims_org_id": "o",
        "opt_in_enabled": True,
        "errors_enabled": False,
        "endpoint": "http://127.0.0.1:8080",
        "state_dir": Path("/var/lib/x"),
        "store": "memory",
        "context": ("web", "placeContext"),
        "linger": 0.25,
        "max_in_flight": 2,
        "proxy": "http://proxy.example:3128",
        "ca_bundle": Path("/etc/ca.pem"),
    }


@pytest.mark.parametrize(
    ("variable", "field"), [("ALLOY_DATASTREAM_ID", "config_id"), ("ALLOY_ORG_ID", "ims_org_id")]
)
def test_the_ids_have_second_variables(variable, field):
    """Today's names of the two ids work as variables too."""
    other = {"config_id": "c", "ims_org_id": "o"}
    del other[field]
    assert getattr(Settings.resolve(other, {variable: "v"}), field) == "v"


def test_a_host_given_in_code_replaces_either_from_the_environment():
    """ALLOY_ENDPOINT does not collide with an edge_domain in code, nor the other way round."""
    assert resolve({"ALLOY_ENDPOINT": "https://a.example"}, edge_domain="b.example").base_url() == (
        "https://b.example/ee"
    )
    assert resolve({"ALLOY_EDGE_DOMAIN": "a.example"}, endpoint="https://b.example").base_url() == (
        "https://b.example/ee"
    )


def test_variables_of_others_and_empty_ones_are_left_alone():
    """Unknown variables and empty texts change nothing; objects cannot come from a variable."""
    environment = {"ALLOY_MAX_PARKED": "", "ALLOY_SOMETHING": "x", "PATH": "/bin", "ALLOY_CLIENT": "x"}
    assert resolve(environment) == resolve()


def test_reads_the_variables_of_the_process(monkeypatch):
    """Without an environment of its own it looks at the process's."""
    monkeypatch.setenv("ALLOY_ORDERED", "true")
    assert Settings.resolve(IDS).ordered is True


# Booleans


BOOLEANS = [name for name, field in Settings.model_fields.items() if isinstance(field.default, bool)]


@pytest.mark.parametrize("option", BOOLEANS)
@pytest.mark.parametrize(
    "value", ["off", "on", "yes", "no", "true", "True", "", 1, 0, 1.0, None, [], b"true"], ids=repr
)
def test_only_true_and_false_are_booleans(option, value):
    """Nothing that merely looks like a yes or a no is taken, in any boolean option."""
    assert refusal(**{option: value}).option == option


@pytest.mark.parametrize("option", BOOLEANS)
@pytest.mark.parametrize("text", ["off", "on", "yes", "1", "0", "True", "TRUE", " true", "false ", "none"])
def test_only_two_words_are_booleans_in_the_environment(option, text):
    """A variable is exactly true or false; everything else is refused, naming the variable."""
    variable = f"ALLOY_{option.upper()}"
    error = refusal({variable: text})
    assert (error.option, variable in str(error)) == (variable, True)
    durable = {"ALLOY_OUTBOX": "sqlite"}  # which one of them needs
    assert getattr(resolve({variable: "true"} | durable), option) is True
    assert getattr(resolve({variable: "false"} | durable), option) is False


def test_an_empty_variable_never_leaves_the_gate_open_by_mistake():
    """ALLOY_OPT_IN_ENABLED= (a deployment that forgot the value) is not exactly true or false: it is refused."""
    assert refusal({"ALLOY_OPT_IN_ENABLED": ""}).option == "ALLOY_OPT_IN_ENABLED"


# Spellings


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_option_has_a_spelling_of_javascript(field):
    """Each field is taken in snake_case and in camelCase, and twice is refused."""
    value = getattr(resolve(), field)
    if value is None:
        value = {"endpoint": "https://a.example", "edge_domain": "a.example"}.get(field)
    snake = {key: item for key, item in IDS.items() if key != field} | {field: value}
    camel = {key: item for key, item in IDS.items() if key != field} | {to_camel(field): value}
    assert getattr(Settings.resolve(camel, {}), field) == getattr(Settings.resolve(snake, {}), field)
    if to_camel(field) != field:
        with pytest.raises(ConfigurationError, match="given twice"):
            Settings.resolve(snake | camel, {})


@pytest.mark.parametrize(("synonym", "field"), SYNONYMS.items())
def test_every_synonym_means_its_field(synonym, field):
    """The other names of today's and the 2019 SDK set the same field."""
    value = True if field == "debug_enabled" else "v"
    options = {key: item for key, item in IDS.items() if key != field} | {synonym: value}
    assert getattr(Settings.resolve(options, {}), field) == value


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("optinEnabled", "opt_in_enabled"),
        ("opt_in_enable", "opt_in_enabled"),
        ("OPT_IN_ENABLED", "opt_in_enabled"),
        ("config_ids", "config_id"),
        ("endPoint", "endpoint"),
        ("edgeDomian", "edge_domain"),
        ("timeout", "request_timeout"),
        ("onBeforeEventsend", "on_before_event_send"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(option, meant):
    """A misspelling is an error that names what was probably meant."""
    error = refusal(**{option: SECRET})
    assert error.option == option
    suggestion = re.search(r"Did you mean (\w+)\?", str(error))
    assert suggestion is not None
    assert suggestion[1] in {meant, to_camel(meant)}


def test_an_unknown_option_like_nothing_has_no_suggestion():
    """A word that resembles none gets no guess, and a long one is cut."""
    assert "Did you mean" not in str(refusal(zzzzzzzzzzzz=1))
    assert len(str(refusal(**{"q" * 10_000: 1}))) < 300
    assert nearest("", ["a"]) == ""


# Required and refused


@pytest.mark.parametrize("missing", ["config_id", "ims_org_id"])
def test_both_ids_are_required(missing):
    """A missing id is named, with the variable that would give it."""
    with pytest.raises(ConfigurationError, match=f"ALLOY_{missing.upper()}") as caught:
        Settings.resolve({key: value for key, value in IDS.items() if key != missing}, {})
    assert caught.value.option == missing


@pytest.mark.parametrize("option", ["config_id", "ims_org_id"])
@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a\r\nX: 1", "a\0", "a\x7f", "a" * 257, None, 5, b"a", ["a"], "\ud800"],
    ids=lambda v: repr(v)[:20],
)
def test_an_id_is_a_text_that_may_stand_in_an_address(option, value):
    """Blanks, line breaks, control characters, halves of characters and other kinds are refused, naming the id."""
    assert refusal(**{option: value}).option == option


def test_other_organisations_than_adobes_are_taken():
    """A self-hosted edge may call its organisations what it likes."""
    assert resolve(ims_org_id="my-org").ims_org_id == "my-org"


SECONDS = ["preference_max_age", "parked_ttl", "linger", "request_timeout", "connect_timeout"]
COUNTS = [
    "max_parked",
    "max_parked_bytes",
    "max_queued",
    "max_queued_bytes",
    "max_in_flight",
    "max_answer_bytes",
]


@pytest.mark.parametrize("option", SECONDS)
@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), 10**400, "5", True, None, [1]], ids=lambda v: repr(v)[:9]
)
def test_a_time_is_a_positive_number(option, value):
    """Zero, negative, endless, text and booleans are refused, naming the option."""
    assert refusal(**{option: value}).option == option


@pytest.mark.parametrize("option", SECONDS)
def test_a_time_may_be_whole_or_not(option):
    """Integers, floats and Decimals are numbers of seconds."""
    assert [getattr(resolve(**{option: value}), option) for value in (2, 0.5, Decimal("1.5"))] == [
        2.0,
        0.5,
        1.5,
    ]


@pytest.mark.parametrize("option", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, float("nan"), "5", True, None], ids=repr)
def test_a_bound_is_a_positive_integer(option, value):
    """Zero, negative, fractions, text and booleans are refused, naming the option."""
    assert refusal(**{option: value}).option == option
    assert getattr(resolve(**{option: 5}), option) == 5


@pytest.mark.parametrize("value", [0, 1_023, 65_537, 10**9, True, "65536"], ids=repr)
def test_a_body_has_the_bounds_of_the_edge(value):
    """A body of more than 65 536 bytes would be refused by the edge, one below 1 024 holds no event."""
    assert refusal(max_body_bytes=value).option == "max_body_bytes"
    assert resolve(max_body_bytes=1_024).max_body_bytes == 1_024


@pytest.mark.parametrize("text", ["x", "1,5", "5s", "0x10", "9" * 5_000, "ten"], ids=lambda v: v[:9])
@pytest.mark.parametrize("option", ["max_parked", "parked_ttl"])
def test_a_number_in_the_environment_is_a_number(option, text):
    """Text that is no number is refused, naming the variable or its option."""
    assert refusal({f"ALLOY_{option.upper()}": text}).option in {f"ALLOY_{option.upper()}", option}


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0"])
def test_a_time_in_the_environment_is_positive(text):
    """What a float would read but no clock could use is refused."""
    assert refusal({"ALLOY_PARKED_TTL": text}).option == "parked_ttl"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("context", "web"),
        ("context", ["web", "shoes"]),
        ("context", None),
        ("hooks", None),
        ("hooks", [1]),
        ("hooks", print),
        ("on_before_event_send", "text"),
        ("on_before_event_send", 1),
        ("state_dir", 5),
        ("state_dir", ["a"]),
        ("ca_bundle", 5),
        ("proxy", 5),
        ("endpoint", 5),
        ("edge_domain", b"edge.example"),
        ("edge_base_path", None),
    ],
)
def test_other_options_are_checked_too(option, value):
    """A wrong kind is refused, and the option is named in the error and in its text."""
    error = refusal(**{option: value})
    assert (error.option, str(error).startswith(f"{option}: ")) == (option, True)


def test_several_mistakes_are_told_together():
    """One error tells of every option that cannot be used."""
    text = str(refusal(config_id=5, opt_in_enabled="yes", errors_enabled=1))
    assert [option for option in ("config_id:", "opt_in_enabled:", "errors_enabled:") if option in text] == [
        "config_id:",
        "opt_in_enabled:",
        "errors_enabled:",
    ]


# Where events go


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "https://edge.adobedc.net/ee"),
        ({"edge_base_path": "ee-pre-prd"}, "https://edge.adobedc.net/ee-pre-prd"),
        ({"endpoint": "https://edge.example"}, "https://edge.example/ee"),
        ({"endpoint": "https://edge.example/"}, "https://edge.example/ee"),
        ({"endpoint": "https://edge.example:8443/"}, "https://edge.example:8443/ee"),
        ({"endpoint": "https://edge.example/a/b"}, "https://edge.example/a/b"),
        ({"endpoint": "https://edge.example/a/", "edge_base_path": "x"}, "https://edge.example/a"),
        ({"endpoint": "https://edge.example", "edge_base_path": "x/y"}, "https://edge.example/x/y"),
        ({"endpoint": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080/ee"),
        ({"endpoint": "http://localhost:8080"}, "http://localhost:8080/ee"),
        ({"endpoint": "http://[::1]:8080"}, "http://[::1]:8080/ee"),
        ({"endpoint": "http://edge.example", "allow_insecure": True}, "http://edge.example/ee"),
        ({"edge_domain": "edge.example"}, "https://edge.example/ee"),
        ({"edge_domain": "edge.example:8443"}, "https://edge.example:8443/ee"),
        ({"edge_domain": "localhost:8080"}, "http://localhost:8080/ee"),
        ({"edge_domain": "[::1]:8080"}, "http://[::1]:8080/ee"),
        ({"edge_domain": "127.0.0.1"}, "http://127.0.0.1/ee"),
        ({"edge_domain": "my_host-1.example"}, "https://my_host-1.example/ee"),
    ],
)
def test_addresses_that_are_taken(options, url):
    """Scheme, host, port and path come together to the beginning of every request's address."""
    assert resolve(**options).base_url() == url


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "edge.example",
        "//edge.example",
        "ftp://edge.example",
        "file:///etc/passwd",
        "https://",
        "https://:443",
        "https:///ee",
        "http://edge.example",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example",
        "http://0.0.0.0:8080",
        f"https://user:{SECRET}@edge.example",
        f"https://edge.example/?{SECRET}",
        "https://edge.example/#a",
        "https://edge.example:0",
        "https://edge.example:65536",
        "https://edge.example:port",
        "https://edge.example:-1",
        "https://edge.example:",
        "https://[::1",
        "https://[zz]",
        "https://edge..example\r\nX: 1",
        "https://edge.example\\@evil.example",
        "https://edge .example",
        "https://edge.example/a b",
        "https://edge.example/a/../b",
        "https://edge.example/%2e%2e",
        "https://-edge.example",
        "https://" + "a" * 3_000,
        "https://edge\u3002example",
        "https://b\u00fccher.example",
    ],
    ids=lambda value: repr(value)[:40],
)
def test_endpoints_that_are_refused(endpoint):
    """What is no usable address, or would show data to the network, is refused before anything is sent."""
    assert refusal(endpoint=endpoint).option in {"endpoint", "edge_base_path"}


@pytest.mark.parametrize(
    "domain",
    [
        "",
        "https://edge.example",
        "edge.example/ee",
        "edge.example:99999",
        "edge.example:0",
        "[::1",
        "a b",
        "a\n",
        f"user:{SECRET}@edge.example",
        "edge.example?x",
        "edge.example#x",
        "edge.example\\x",
        "::1",
        ".example",
    ],
)
def test_domains_that_are_refused(domain):
    """A domain is a host with an optional port; anything more or less is refused."""
    assert refusal(edge_domain=domain).option == "edge_domain"


@pytest.mark.parametrize(
    "path", ["", "/ee", "ee/", "ee?x=", "ee#", "a b", "..", "a/../b", "a//b", "ee\r\n", "é", "%2e"]
)
def test_base_paths_that_are_refused(path):
    """A base path is plain parts and nothing that could change the rest of an address."""
    assert refusal(edge_base_path=path).option == "edge_base_path"


def test_two_hosts_are_one_too_many():
    """An endpoint and a domain together are refused, since one of them would be ignored."""
    assert refusal(endpoint="https://a.example", edge_domain="b.example").option == "endpoint"


# From server to server

CREDENTIALS = {"client_id": "client", "client_secret": SECRET}


def test_credentials_make_it_authenticated():
    """With both of them events go to the host for servers, in v2; without they go where they always went."""
    settings = resolve(**CREDENTIALS)
    assert settings.authenticated
    assert settings.base_url() == "https://server.adobedc.net/ee"
    assert settings.open_url() == "https://edge.adobedc.net/ee"
    assert settings.token_url() == "https://ims-na1.adobelogin.com/ims/token/v3"
    assert settings.client_secret is not None
    assert settings.client_secret.get_secret_value() == SECRET
    assert not resolve().authenticated
    assert resolve().open_url() == resolve().base_url() == "https://edge.adobedc.net/ee"


def test_credentials_come_from_the_environment_too():
    """Each has its variable, scopes are separated by commas; half may come from here and half from the call."""
    environment = {
        "ALLOY_CLIENT_ID": "client",
        "ALLOY_CLIENT_SECRET": SECRET,
        "ALLOY_SCOPES": "openid, AdobeID,session",
        "ALLOY_IMS_HOST": "ims.example:8443",
    }
    settings = resolve(environment)
    assert (settings.client_id, settings.scopes) == ("client", ("openid", "AdobeID", "session"))
    assert settings.client_secret == SecretStr(SECRET)
    assert settings.token_url() == "https://ims.example:8443/ims/token/v3"
    assert resolve({"ALLOY_CLIENT_SECRET": SECRET}, client_id="client").authenticated


@pytest.mark.parametrize(
    ("given", "missing"), [("client_id", "client_secret"), ("client_secret", "client_id")]
)
def test_half_of_the_credentials_is_refused(given, missing):
    """The error names the other half and its variable."""
    error = refusal(**{given: CREDENTIALS[given]})
    assert error.option == missing
    assert f"{missing}: is required with {given}" in str(error)
    assert f"ALLOY_{missing.upper()}" in str(error)


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("https://data.shop.example", "https://data.shop.example/ee"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/ee"),
        ("https://server.adobedc.net/ee-pre-prd", "https://edge.adobedc.net/ee-pre-prd"),
        ("https://Server.adobedc.net", "https://edge.adobedc.net/ee"),
    ],
)
def test_what_has_no_v2_goes_to_the_same_host_where_it_can(endpoint, address):
    """A host of one's own takes both; the one for servers takes v2 only."""
    settings = resolve(**CREDENTIALS, endpoint=endpoint)
    assert (settings.base_url().lower(), settings.open_url()) == (
        f"{endpoint.lower()}{'' if 'pre-prd' in endpoint else '/ee'}",
        address,
    )


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080"])
def test_on_loopback_tokens_come_without_encryption(host):
    """An identity service for tests needs no certificate; anywhere else the secret never goes in the clear."""
    assert resolve(ims_host=host).token_url() == f"http://{host}/ims/token/v3"
    assert resolve(ims_host="localhost.evil.example", allow_insecure=True).token_url().startswith("https://")


@pytest.mark.parametrize(
    "host",
    ["", "https://ims.example", "ims.example/x", "a b", "u:p@ims.example", "ims.example:0", "x?y", 5, None],
)
def test_hosts_for_tokens_that_are_refused(host):
    """A host with an optional port and nothing more, as for edge_domain; checked with and without credentials."""
    assert refusal(ims_host=host).option == "ims_host"


@pytest.mark.parametrize("option", ["client_id", "client_secret"])
@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a\n", "a\r\nX: 1", "a\0", 5, b"a", ["a"], "a" * 5_000],
    ids=lambda v: repr(v)[:9],
)
def test_credentials_are_checked(option, value):
    """One that was copied with a line break, or is no text, is refused by name; nothing of it is told."""
    assert refusal(**CREDENTIALS | {option: value}).option == option
    if option == "client_secret" and isinstance(value, str):
        assert refusal(**CREDENTIALS | {option: SecretStr(value)}).option == option


def test_a_client_is_named_in_ascii():
    """Its id becomes a header; its secret does not, and may be any text."""
    assert refusal(**CREDENTIALS | {"client_id": "clïent"}).option == "client_id"
    assert resolve(**CREDENTIALS | {"client_secret": "gehéim"}).authenticated


@pytest.mark.parametrize("org", ["my-org", "@", "a@", "@b", "a@b@c", "ADB3ü@AdobeOrg", "ADB3_AdobeOrg"])
def test_the_organisation_is_told_in_a_header(org):
    """With credentials it must have its @, as the header wants it; without, any name will do."""
    error = refusal(**CREDENTIALS, ims_org_id=org)
    assert (error.option, "with its @" in str(error)) == ("ims_org_id", True)
    assert resolve(ims_org_id=org).ims_org_id == org


@pytest.mark.parametrize(
    ("scopes", "taken"),
    [
        ("openid", ("openid",)),
        ("openid,AdobeID", ("openid", "AdobeID")),
        (" openid , read_organizations ", ("openid", "read_organizations")),
        (["openid", "acp.foundation"], ("openid", "acp.foundation")),
        (("a/b:c-d_e",), ("a/b:c-d_e",)),
        ("", ()),
        ([], ()),
    ],
)
def test_scopes_that_are_taken(scopes, taken):
    """As the console shows them, in one text, or one by one."""
    assert resolve(scopes=scopes).scopes == taken


@pytest.mark.parametrize(
    "scopes",
    [
        ",",
        "a,,b",
        "a b",
        ["a,b"],
        ['a"b'],
        ["a\\b"],
        [""],
        [5],
        ["a\n"],
        ["é"],
        5,
        None,
        {"a": 1},
        ["a" * 300],
    ],
)
def test_scopes_that_are_refused(scopes):
    """What is no name, or has a separator in it, is refused."""
    assert refusal(scopes=scopes).option == "scopes"


@pytest.mark.parametrize("secret", [SECRET, SecretStr(SECRET)], ids=["text", "SecretStr"])
def test_the_secret_never_shows(secret):
    """Neither the settings, nor their description, dumps or copies show it; that there is one may be seen."""
    settings = resolve(**CREDENTIALS | {"client_secret": secret})
    shown = [settings, settings.describe(), settings.model_dump(), settings.model_copy(), vars(settings)]
    assert SECRET not in "".join(map(repr, shown)) + str(settings)
    described = settings.describe()
    assert (described["client_id"], described["client_secret"]) == ("client", "**********")
    assert resolve().describe()["client_secret"] is None


# What shows


def test_nothing_that_was_given_is_in_an_error():
    """A refused value may be a secret: no text, cause, context or frame of the error repeats it."""
    for option in Settings.model_fields:
        if option in {"store", "outbox", "transport", "client", "clock", "ids"}:
            continue  # any object is taken here
        error = refusal(**{option: [{SECRET: SECRET}]})
        assert error.option == option
    for option in (*SECONDS, *COUNTS, *BOOLEANS):
        refusal({f"ALLOY_{option.upper()}": SECRET})


def test_a_description_shows_no_secret_and_no_object():
    """What describe() returns is plain: without the proxy's password, without objects."""
    store = MemoryStore()
    settings = resolve(
        proxy=f"http://user:{SECRET}@proxy.example",
        state_dir="/var/x",
        store=store,
        transport=RecordingEdge(),
        hooks=[print],
        context=["web"],
    )
    described = settings.describe()
    assert SECRET not in repr(described)
    assert described["state_dir"] == "/var/x"
    assert described["store"] == "MemoryStore"
    assert described["context"] == ["web"]
    assert described["transport"] == "RecordingEdge"
    assert {"hooks", "client", "clock", "ids", "on_before_event_send", "proxy"}.isdisjoint(described)


def test_settings_stay_as_they_are():
    """The model is frozen."""
    with pytest.raises(ValidationError):
        resolve().max_parked = 1


@pytest.mark.parametrize(("name", "field"), Settings.model_fields.items())
def test_every_field_describes_itself(name, field):
    """Each field has one or two sentences of description; a number says its unit."""
    description = field.description or ""
    assert description.endswith(".")
    if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
        assert re.match(r"(Seconds|Bytes|Commands|Events|Requests|Visitors) ", description), name


def test_the_keywords_of_configure_are_the_fields():
    """What an editor offers is what the model takes, plus the two other names in snake_case."""
    aliases = {name for name in SYNONYMS if name.islower()}
    assert set(typing.get_type_hints(ConfigureOptions)) == set(Settings.model_fields) | aliases


def test_what_a_browser_needs_is_no_field():
    """The options that are ignored are none of ours."""
    ours = set(Settings.model_fields) | {to_camel(name) for name in Settings.model_fields} | set(SYNONYMS)
    assert not BROWSER_ONLY & ours


# Through configure


async def test_browser_options_are_ignored_and_said_once(options, caplog):
    """Options of a page are taken without effect, and one line in the log names them."""
    caplog.set_level(logging.WARNING)
    async with Alloy() as alloy:
        await alloy("configure", options | {"prehidingStyle": "x", "clickCollectionEnabled": True})
        alloy.event()
        await alloy.opt_in(purposes="all")
        await settle()
    lines = [line for line in caplog.messages if "prehidingStyle" in line]
    assert lines == ["ignored, they mean something in a browser only: clickCollectionEnabled, prehidingStyle"]


async def test_all_browser_options_are_taken(options):
    """None of them makes configure fail, whatever its value."""
    async with Alloy() as alloy:
        await alloy("configure", options | dict.fromkeys(BROWSER_ONLY, object()))


async def test_a_refused_option_leaves_the_instance_usable(options):
    """After an error configure may be called again; nothing was sent in between."""
    async with Alloy() as alloy:
        with pytest.raises(ConfigurationError, match="Did you mean"):
            await alloy("configure", options | {"optinEnabled": True})
        await alloy.configure(**options)
        assert options["transport"].requests == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"proxy": f"foo://user:{SECRET}@proxy.example"},
        {"proxy": f"http://user:{SECRET}@proxy.example:bad"},
        {"proxy": ""},
        {"ca_bundle": "/no/such/file.pem"},
        {"ca_bundle": __file__},
        {"client": object()},
        {"state_dir": "/tmp/a\0b", "store": "sqlite"},
        {"store": "rediss"},
        {"store": object()},
        {"transport": object()},
        {"clock": 5},
        {"ids": 5},
    ],
    ids=lambda value: str(value)[:24],
)
async def test_what_cannot_be_used_travels_in_the_future(options, wrong):
    """An option that fails only when it is put to use ends configure's future with an error that names it."""
    given = {key: value for key, value in options.items() if key not in {"clock", "ids"}}
    if {"proxy", "ca_bundle", "client"} & wrong.keys():
        del given["transport"]
    async with Alloy() as alloy:
        future = alloy.configure(**given | wrong)  # raises nothing
        with pytest.raises(ConfigurationError) as caught:
            await future
        assert caught.value.option in wrong
        assert SECRET not in str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
        await alloy.configure(**options)  # and the instance is as good as new


async def test_keys_that_are_no_text_travel_in_the_future():
    """The browser spelling takes any mapping; a key of another kind is refused through the future."""
    async with Alloy() as alloy:
        with pytest.raises(ConfigurationError):
            await alloy("configure", {1: "x"})


@pytest.mark.parametrize("option", ["store", "outbox"])
def test_redis_needs_an_address(option):
    """It is asked for by name, and never shown again."""
    assert refusal({}, **{option: "redis"}).option == "redis_url"
    settings = resolve({}, redis_url="redis://user:pass-word@redis.example", **{option: "redis"})
    assert "pass-word" not in f"{settings!r}{settings.describe()}"


def test_a_relay_needs_an_outbox():
    """What is only in memory cannot be left to another process."""
    assert refusal({}, relay=True).option == "relay"
    assert resolve({}, relay=True, outbox="sqlite").relay


def test_no_secret_is_in_a_repr():
    """What a debugger or an error reporter shows of settings holds no password, nor the client's secret."""
    settings = Settings.resolve(
        IDS
        | {
            "ims_org_id": "ADB3@AdobeOrg",
            "proxy": "http://me:hush-1@proxy.example:3128",
            "redis_url": "redis://:hush-2@redis.example",
            "client_id": "shop",
            "client_secret": "hush-3",
        },
        {},
    )
    assert "hush" not in f"{settings!r} {settings}"
