"""The cells run one after the other, as in a notebook."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

CELLS = Path(__file__).with_name("cells.py").read_text("utf-8").split("# %% ")[1:]


async def test_the_cells_run_in_order(edge, capsys):
    """Every cell runs, two events arrive, and the third is refused."""
    namespace = {}
    for cell in CELLS:
        title, _, source = cell.partition("\n")
        code = compile(source, title, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        outcome = eval(code, namespace)
        if inspect.isawaitable(outcome):
            await outcome
        assert edge.requests == [] or "Ask" in "".join(CELLS[: CELLS.index(cell) + 1])
    assert [record["event"]["data"]["page"] for record in edge.events] == ["home", "help"]
    printed = capsys.readouterr().out.splitlines()
    assert "parked=2" in printed[0]
    assert printed[-1] == "3 = 2 + 1"
