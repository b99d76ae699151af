"""Breaks each promise on purpose, in a copy of the package, and shows that the state machine notices.

Run it with ``nox -s mutants``, or ``python tests/model/mutants.py [promise …]``. It ends with status 0 when every mutant is caught.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutant(NamedTuple):
    """One promise, and the line that breaks it."""

    promise: str
    file: str
    before: str
    after: str


MUTANTS = [
    Mutant(
        "1 no consent, no trace: an event that waits for consent is let through",
        "_consent/_rules.py",
        "Consent.PENDING: Verdict.PARK",
        "Consent.PENDING: Verdict.PASS",
    ),
    Mutant(
        "1 no consent, no trace: consent is not asked again right before the wire",
        "_batch.py",
        "            if command.verdict() is not Verdict.PASS:\n                return False",
        "            pass",
    ),
    Mutant(
        "2 every command ends: what is on the wire at the end is forgotten",
        "_courier.py",
        "        if task.cancelled():",
        "        if False:",
    ),
    Mutant(
        "3 in order: the line hands out the newest first",
        "_line.py",
        "return chain(in_front, self._returned, self._waiting)",
        "return chain(in_front, self._returned, reversed(self._waiting))",
    ),
    Mutant(
        "4 refusal reaches everywhere: a new yes revives what was refused",
        "_consent/_rules.py",
        "STARTS_EPOCH = frozenset({Occurrence.SAID_NONE, Occurrence.FORGOTTEN})",
        "STARTS_EPOCH: frozenset[Occurrence] = frozenset()",
    ),
    Mutant(
        "4 refusal reaches everywhere, at once: queued events are not recalled",
        "_visitor.py",
        "            self._courier.recall(self)",
        "            pass",
    ),
    Mutant(
        "3 in order: what an earlier start has left is overtaken",
        "_taking_over.py",
        "        return self._left.is_known and visitor not in self._left.visitors",
        "        return True",
    ),
    Mutant(
        "4 refusal reaches everywhere: what another process withdrew is not looked at before the wire",
        "_outbox_keeper.py",
        "        if self._epoch.is_latest():",
        "        if True:",
    ),
    Mutant(
        "4 refusal reaches everywhere: what is on disk is not erased",
        "_erasing.py",
        "            await self._keeper.erase(key)",
        "            pass",
    ),
    Mutant(
        "5 a choice is durable: yes releases before it is written",
        "_preference.py",
        "            self._gate.expect_all()",
        '            self._gate.choose("all")',
    ),
    Mutant(
        "5 a choice is durable: the future ends although nothing was written",
        "_preference.py",
        "                await self._store.save_preference(self._key, preference)",
        "                pass",
    ),
    Mutant(
        "6 nothing is lost in silence: an event that finds no room is not entered in the books",
        "_ledger.py",
        "        self._outcomes[outcome] += 1",
        '        self._outcomes[outcome] += outcome != "overflowed"',
    ),
    Mutant(
        "6 nothing is lost in silence: what is kept for the next start is erased at the end",
        "_commands.py",
        '        if outcome != "kept" and (self.key is not None or self.local_key is not None):',
        "        if self.key is not None or self.local_key is not None:",
    ),
    Mutant(
        "6 nothing is lost in silence: what waits for another attempt is forgotten",
        "_courier.py",
        "            heapq.heappush(self._again, _Waiting(due, batch.head.order, next(self._holds), batch))",
        "            pass",
    ),
    Mutant(
        "7 bounded: parking has no bound",
        "_consent/_room.py",
        "        if self._parked >= self._max_parked:",
        "        if False:",
    ),
    Mutant(
        "8 one visitor is never another: two organisations share one key",
        "_engine.py",
        "VisitorKey(self.settings.ims_org_id, self.settings.config_id, visitor)",
        'VisitorKey("everybody", "everything", visitor)',
    ),
]


def plant(mutant: Mutant, copy: Path) -> None:
    """Write the mutant into a copy of the package."""
    path = copy / "alloy_async" / mutant.file
    text = path.read_text()
    if text.count(mutant.before) != 1:
        sys.exit(f"{mutant.file} has changed; bring this line up to date: {mutant.before.strip()}")
    path.write_text(text.replace(mutant.before, mutant.after))


def is_caught(mutant: Mutant) -> bool:
    """Return whether the state machine fails on a package with the mutant."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(
            ROOT / "alloy_async", copy / "alloy_async", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        plant(mutant, copy)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/model"]
        environment = os.environ | {"PYTHONPATH": folder, "HYPOTHESIS_PROFILE": "hunting"}
        run = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, check=False, timeout=600
        )
    return run.returncode == 1  # 1: tests failed; anything else is trouble of another kind


def main() -> int:
    """Try every mutant and say what happened."""
    wanted = [
        mutant for mutant in MUTANTS if not sys.argv[1:] or mutant.promise.startswith(tuple(sys.argv[1:]))
    ]
    caught = 0
    for mutant in wanted:
        noticed = is_caught(mutant)
        caught += noticed
        sys.stdout.write(f"{'caught ' if noticed else 'ESCAPED'}  promise {mutant.promise}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{caught} of {len(wanted)} mutants caught\n")
    return 0 if caught == len(wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
