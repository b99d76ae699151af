"""What every store must do, as tests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ..errors import ConsentStoreError
from ..identity import StoredIdentity
from ..stores.base import Choice, Preference, Store, VisitorKey

__all__ = ["StoreConformance"]

KEY = VisitorKey("ADB3LETTERSANDNUMBERS@AdobeOrg", "ebebf826-a01f-4458-8cec-ef61de241c93", "visitor-1")

NEIGHBOURS = [
    KEY._replace(organisation="ANOTHER@AdobeOrg"),
    KEY._replace(datastream="another"),
    KEY._replace(visitor="visitor-2"),
    KEY._replace(visitor=""),
]
"""Keys that differ from ``KEY`` in one part."""

CHOSEN_AT = 1_767_225_600.123456
EXPIRES_AT = CHOSEN_AT + 15_552_000.5

ODD_TEXTS = [
    "",
    " ",
    "visitor",
    "visitor ",
    "VISITOR",
    "O'Brien",
    'say "yes"',
    "'; DROP TABLE preference; --",
    "a%",
    "a_",
    "a*",
    "a:b",
    "a/../b",
    "a\\b",
    "a\0b",
    "a\nb",
    "None",
    "名前",
    "🎉",
    "caf\u00e9",
    "cafe\u0301",
    "x" * 5_000,
]
"""Texts that a store may take for syntax, for nothing, or for one another."""

HALF_A_CHARACTER = "half \ud83d of a surrogate pair"

IDENTITY = StoredIdentity(
    "f7e0c8a2-6a3b-4d0e-9d70-0b1f7a8c1d21",
    "41861666193140161934276845651148876988",
    {"CRMID": {"id": "customer 7", "authenticatedState": "authenticated", "primary": True}},
)
ANOTHER_IDENTITY = StoredIdentity("0a8d1c6e-29b4-4c57-8f8e-3c2f5b9d1e04", None, {})

_A_FEW_DIFFERENT_CALLS = 40


class StoreConformance:
    """Checks that a store keeps the promises of the ``Store`` protocol.

    Make a subclass whose name begins with ``Test`` and give it a fixture ``store`` with an empty store; pytest runs
    every test of this class against it. The tests are coroutines: with pytest-asyncio in strict mode mark the
    subclass with ``pytest.mark.asyncio``. ::

        class TestRedisStore(StoreConformance):
            @pytest.fixture
            async def store(self, redis_url):
                store = RedisStore(redis_url)
                yield store
                await store.aclose()

    What it cannot check from inside one process is that a method that has returned survives ``kill -9``.
    """

    async def test_nothing_kept_is_none(self, store: Store) -> None:
        """A visitor who has never chosen has no choice and no identity."""
        _equal(await store.load_preference(KEY), None, "a choice that was never made is None")
        _equal(await store.load_identity(KEY), None, "an identity that was never kept is None")

    async def test_choice_comes_back(self, store: Store) -> None:
        """A choice comes back as it was saved, apart from what the store assigns."""
        for purposes in _CHOICES:
            await store.save_preference(KEY, _preference(purposes, source="a word"))
            kept = _present(await store.load_preference(KEY))
            _equal(
                replace(kept, epoch=0, consents_since=0.0),
                _preference(purposes, source="a word"),
                "a choice comes back",
            )

    async def test_later_choice_wins(self, store: Store) -> None:
        """Of several choices the last one is kept, with its own times."""
        for step, purposes in enumerate(["all", "none", "all", "all", "none", "none"]):
            preference = _preference("all" if purposes == "all" else "none", chosen_at=CHOSEN_AT + step)
            await store.save_preference(KEY, preference)
            kept = _present(await store.load_preference(KEY))
            _equal(replace(kept, epoch=0, consents_since=0.0), preference, "the later choice wins")

    async def test_identity_comes_back(self, store: Store) -> None:
        """An identity comes back as it was saved, and a later one replaces it."""
        await store.save_preference(KEY, _preference("all"))
        for identity in (IDENTITY, ANOTHER_IDENTITY, IDENTITY):
            await store.save_identity(KEY, identity)
            _equal(await store.load_identity(KEY), identity, "an identity comes back, the later one wins")

    async def test_identity_needs_no_choice(self, store: Store) -> None:
        """An identity is kept where no choice is kept: consent may be switched off."""
        await store.save_identity(KEY, IDENTITY)
        _equal(await store.load_identity(KEY), IDENTITY, "an identity is kept unless a refusal is")

    async def test_consent_leaves_identity(self, store: Store) -> None:
        """Saving "all" changes nothing about the identity."""
        await store.save_identity(KEY, IDENTITY)
        await store.save_preference(KEY, _preference("all"))
        _equal(await store.load_identity(KEY), IDENTITY, '"all" leaves the identity')

    async def test_refusal_erases_identity(self, store: Store) -> None:
        """Saving "none" erases the identity in the same step."""
        await store.save_preference(KEY, _preference("all"))
        await store.save_identity(KEY, IDENTITY)
        await store.save_preference(KEY, _preference("none"))
        _equal(await store.load_identity(KEY), None, '"none" erases the identity')
        await store.save_preference(KEY, _preference("all"))
        _equal(await store.load_identity(KEY), None, 'a later "all" does not bring it back')

    async def test_identity_after_refusal_is_not_kept(self, store: Store) -> None:
        """Saving an identity while a refusal is kept does nothing, and works again after "all"."""
        await store.save_preference(KEY, _preference("none"))
        await store.save_identity(KEY, IDENTITY)
        _equal(await store.load_identity(KEY), None, "an identity that comes after a refusal is not kept")
        await store.save_preference(KEY, _preference("all"))
        _equal(await store.load_identity(KEY), None, "and does not appear later")
        await store.save_identity(KEY, IDENTITY)
        _equal(await store.load_identity(KEY), IDENTITY, 'after "all" it is kept')

    async def test_forget_erases_both(self, store: Store) -> None:
        """Forgetting erases choice and identity, once and twice."""
        await store.save_preference(KEY, _preference("all"))
        await store.save_identity(KEY, IDENTITY)
        for _ in range(2):
            await store.forget(KEY)
            _equal(await store.load_preference(KEY), None, "a forgotten choice is None")
            _equal(await store.load_identity(KEY), None, "a forgotten identity is None")

    async def test_forgetting_nobody_is_harmless(self, store: Store) -> None:
        """Forgetting a visitor of whom nothing is kept does nothing."""
        await store.forget(KEY)
        _equal(await store.load_preference(KEY), None, "nothing is kept of a visitor who was only forgotten")

    async def test_forgetting_lifts_a_refusal(self, store: Store) -> None:
        """After a refusal is forgotten an identity may be kept again."""
        await store.save_preference(KEY, _preference("none"))
        await store.forget(KEY)
        await store.save_identity(KEY, IDENTITY)
        _equal(await store.load_identity(KEY), IDENTITY, "a forgotten refusal no longer bars the identity")

    async def test_keys_do_not_mix(self, store: Store) -> None:
        """What is saved under one key is seen, changed and erased under no other."""
        await store.save_preference(KEY, _preference("all"))
        await store.save_identity(KEY, IDENTITY)
        for neighbour in NEIGHBOURS:
            _equal(await store.load_preference(neighbour), None, f"{neighbour} has chosen nothing")
            _equal(await store.load_identity(neighbour), None, f"{neighbour} has no identity")
            await store.save_preference(neighbour, _preference("none"))
            await store.forget(neighbour)
        _equal(_present(await store.load_preference(KEY)).purposes, "all", "others change nothing")
        _equal(await store.load_identity(KEY), IDENTITY, "others erase nothing")

    async def test_epoch_grows_with_each_refusal(self, store: Store) -> None:
        """Each refusal has a greater epoch than everything before; "all" keeps the epoch that there is."""
        epochs = [
            (await _saved(store, purposes)).epoch for purposes in ("all", "none", "all", "none", "none")
        ]
        first, refused, again, refused_again, refused_thrice = epochs
        _true(first < refused == again < refused_again < refused_thrice, f"epochs grow: {epochs}")

    async def test_epoch_grows_with_forgetting(self, store: Store) -> None:
        """After forgetting, the next choice has a greater epoch than the forgotten one, whatever it is."""
        for before in _CHOICES:
            for after in _CHOICES:
                forgotten = await _saved(store, before)
                await store.forget(KEY)
                chosen = await _saved(store, after)
                _true(chosen.epoch > forgotten.epoch, f"{before}, forget, {after}: the epoch grows")

    async def test_epoch_is_the_visitors_own(self, store: Store) -> None:
        """The refusals and the forgetting of others leave a visitor's epoch: their events would be refused with it."""
        before = await _saved(store, "all")
        for neighbour in NEIGHBOURS:
            await store.save_preference(neighbour, _preference("none"))
            await store.forget(neighbour)
        _equal(
            (await _saved(store, "all")).epoch,
            before.epoch,
            "an epoch changes with the visitor's own refusals",
        )

    async def test_since_when_a_visitor_consents(self, store: Store) -> None:
        """It is the first yes after the newest refusal; a yes that is said again leaves it, and so do others' choices."""
        said: list[Choice] = ["all", "all", "none", "all", "all", "none", "none", "all"]
        since = []
        for moment, purposes in enumerate(said, start=1):
            await store.save_preference(KEY, _preference(purposes, chosen_at=float(moment)))
            await store.save_preference(NEIGHBOURS[0], _preference("none", chosen_at=moment + 0.5))
            since.append(_present(await store.load_preference(KEY)).consents_since)
        _equal(since, [0.0, 0.0, 3.0, 4.0, 4.0, 6.0, 7.0, 8.0], "since when")
        await store.save_preference(KEY, _preference("none", chosen_at=1.0))
        await store.save_preference(KEY, _preference("all", chosen_at=2.0))
        _equal(_present(await store.load_preference(KEY)).consents_since, 8.0, "it never goes back")

    async def test_store_assigns_since_when_a_visitor_consents(self, store: Store) -> None:
        """What a preference that is being saved says of it counts for nothing."""
        await store.save_preference(KEY, replace(_preference("all"), consents_since=1_000.0))
        _equal(_present(await store.load_preference(KEY)).consents_since, 0.0, "the store assigns it")

    async def test_store_assigns_the_epoch(self, store: Store) -> None:
        """The epoch of a preference that is being saved counts for nothing."""
        await store.save_preference(KEY, replace(_preference("none"), epoch=1_000_000))
        inflated = _present(await store.load_preference(KEY)).epoch
        _true(inflated < 1_000_000, "the store assigns the epoch itself")

    async def test_identity_is_kept_as_a_copy(self, store: Store) -> None:
        """A later change to the mapping that was saved changes nothing that is kept."""
        entry = dict(IDENTITY.customer_ids["CRMID"])
        given: dict[str, dict[str, Any]] = {"CRMID": entry}
        await store.save_identity(KEY, replace(IDENTITY, customer_ids=given))
        entry["id"] = "changed"
        given["LOYALTY"] = entry
        _equal(await store.load_identity(KEY), IDENTITY, "what is kept is a copy")

    async def test_identity_is_taken_at_the_call(self, store: Store) -> None:
        """An identity is kept as it was when ``save_identity`` was called, even when it changes while it is saved."""
        given: dict[str, dict[str, Any]] = {"CRMID": dict(IDENTITY.customer_ids["CRMID"])}
        saving = store.save_identity(KEY, replace(IDENTITY, customer_ids=given))
        await asyncio.gather(saving, _change(given))
        kept = await store.load_identity(KEY)
        _equal(kept, IDENTITY, "what is kept is what was given at the call")

    async def test_odd_keys_do_not_mix(self, store: Store) -> None:
        """Keys with any text in them are different keys."""
        keys = [KEY._replace(visitor=text) for text in ODD_TEXTS]
        for step, key in enumerate(keys):
            await store.save_preference(key, _preference("all", chosen_at=float(step)))
        for step, key in enumerate(keys):
            kept = await store.load_preference(key)
            _equal(kept and kept.chosen_at, float(step), f"{key.visitor[:20]!r} is a key of its own")

    async def test_parts_of_a_key_do_not_run_together(self, store: Store) -> None:
        """Two keys whose parts give the same text when written one after the other are different keys."""
        keys = [VisitorKey(*parts) for parts in (("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd"))]
        keys += [VisitorKey("a:b", "c", "d"), VisitorKey("a", "b:c", "d"), VisitorKey("a", "b", "c:d")]
        for step, key in enumerate(keys):
            await store.save_preference(key, _preference("all", chosen_at=float(step)))
        kept = [_present(await store.load_preference(key)).chosen_at for key in keys]
        _equal(kept, [float(step) for step in range(len(keys))], "parts of a key stay apart")

    async def test_odd_texts_come_back(self, store: Store) -> None:
        """Source and customer ids come back, whatever text they hold."""
        for text in filter(str.isprintable, ODD_TEXTS):
            name = text[:1_024].strip() or "CRMID"
            entry = {"id": name, "authenticatedState": "ambiguous", "primary": False}
            identity = replace(IDENTITY, customer_ids={name: entry})
            await store.save_preference(KEY, _preference("all", source=text))
            await store.save_identity(KEY, identity)
            _equal(_present(await store.load_preference(KEY)).source, text, "a source comes back")
            _equal(await store.load_identity(KEY), identity, "customer ids come back")

    async def test_only_its_own_error_is_raised(self, store: Store) -> None:
        """Text that cannot be written ends with ``ConsentStoreError``, where it cannot be kept."""
        odd = KEY._replace(visitor=HALF_A_CHARACTER)
        for key, source in ((odd, "opt_in"), (KEY, HALF_A_CHARACTER)):
            with suppress(ConsentStoreError):
                await store.save_preference(key, _preference("none", source=source))
        for call in (store.load_preference, store.load_identity, store.forget):
            with suppress(ConsentStoreError):
                await call(odd)
        with suppress(ConsentStoreError):
            await store.save_identity(KEY, replace(IDENTITY, fpid=HALF_A_CHARACTER))
        await store.save_preference(KEY, _preference("all"))
        _equal(_present(await store.load_preference(KEY)).purposes, "all", "the store still works")

    async def test_many_visitors_at_once(self, store: Store) -> None:
        """Calls for many visitors at the same time each do their own work."""
        keys = [KEY._replace(visitor=f"visitor {number}") for number in range(_A_FEW_DIFFERENT_CALLS)]
        await asyncio.gather(*(_visit(store, key, number) for number, key in enumerate(keys)))
        for number, key in enumerate(keys):
            kept = _present(await store.load_preference(key))
            _equal(kept.purposes, _choice_of(number), f"{key.visitor} has their own choice")
            identity = await store.load_identity(key)
            _equal(identity is None, _choice_of(number) == "none", f"{key.visitor} has their own identity")

    async def test_many_refusals_at_once(self, store: Store) -> None:
        """Refusals at the same time each make the epoch grow."""
        before = (await _saved(store, "none")).epoch
        calls = [store.save_preference(KEY, _preference("none")) for _ in range(_A_FEW_DIFFERENT_CALLS)]
        await asyncio.gather(*calls)
        after = _present(await store.load_preference(KEY)).epoch
        _true(after >= before + len(calls), f"{len(calls)} refusals: the epoch went from {before} to {after}")

    async def test_calls_in_a_row_keep_their_order(self, store: Store) -> None:
        """A choice that is saved after another one has returned is the one that is kept, while others call too."""
        await asyncio.gather(*(_alternate(store, KEY._replace(visitor=f"{number}")) for number in range(8)))

    async def test_cancelled_call_leaves_a_working_store(self, store: Store) -> None:
        """A caller that is cancelled while saving leaves either the old or the new choice, and a store that works."""
        await store.save_preference(KEY, _preference("none"))
        saving = asyncio.ensure_future(store.save_preference(KEY, _preference("all")))
        await asyncio.sleep(0)
        saving.cancel()
        await asyncio.wait([saving])
        kept = _present(await store.load_preference(KEY))
        _true(kept.purposes in _CHOICES, "one of the two choices is kept")
        _equal((await _saved(store, "none")).purposes, "none", "the next choice is kept")

    async def test_closing_twice_is_harmless(self, store: Store) -> None:
        """Closing an unused store, a used one, and one that is closed already does nothing bad."""
        await store.aclose()
        await store.aclose()
        with suppress(ConsentStoreError):
            await store.save_preference(KEY, _preference("all"))
        await store.aclose()
        await asyncio.gather(store.aclose(), store.aclose())

    async def test_closed_store_raises_only_its_own_error(self, store: Store) -> None:
        """A call after closing works, or ends with ``ConsentStoreError``."""
        await store.save_preference(KEY, _preference("all"))
        await store.aclose()
        for call in (store.load_preference, store.load_identity, store.forget):
            with suppress(ConsentStoreError):
                await call(KEY)
        await store.aclose()


_CHOICES: tuple[Choice, Choice] = ("all", "none")


def _preference(purposes: Choice, *, chosen_at: float = CHOSEN_AT, source: str = "opt_in") -> Preference:
    return Preference(purposes, chosen_at, EXPIRES_AT, source)


async def _saved(store: Store, purposes: Choice) -> Preference:
    await store.save_preference(KEY, _preference(purposes))
    return _present(await store.load_preference(KEY))


def _choice_of(number: int) -> Choice:
    return _CHOICES[number % 2]


async def _visit(store: Store, key: VisitorKey, number: int) -> None:
    await store.save_identity(key, IDENTITY)
    await store.save_preference(key, _preference(_choice_of(number)))


async def _alternate(store: Store, key: VisitorKey) -> None:
    epochs: list[int] = []
    for number in range(6):
        await store.save_preference(key, _preference(_choice_of(number)))
        kept = _present(await store.load_preference(key))
        _equal(kept.purposes, _choice_of(number), "what was saved last is kept")
        epochs.append(kept.epoch)
    _true(all(one <= two for one, two in pairwise(epochs)), f"epochs never shrink: {epochs}")


async def _change(customer_ids: dict[str, dict[str, Any]]) -> None:
    """Change a mapping; started right after ``save_identity``, so that the change falls into its saving."""
    customer_ids["LOYALTY"] = {"id": "late", "authenticatedState": "ambiguous", "primary": False}
    customer_ids["CRMID"]["id"] = "changed"


# Errors are raised by hand: assert would vanish under -O, and pytest explains an assert only in files of the tests.


def _present(preference: Preference | None) -> Preference:
    if preference is None:
        raise AssertionError("a choice that was saved is kept: the store says None")
    return preference


def _equal(actual: object, expected: object, rule: str) -> None:
    if actual != expected:
        raise AssertionError(f"{rule}: expected {expected!r}, the store says {actual!r}")


def _true(fact: bool, rule: str) -> None:  # noqa: FBT001 - a fact, not an option
    if not fact:
        raise AssertionError(rule)
