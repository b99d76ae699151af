"""How the documentation is built: ``sphinx-build -W -n -b html docs docs/_build/html``; no network is needed."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import command_page
import diagrams
import inventory
import settings_page

from alloy_async import __version__

project = "alloy_async"
author = "the alloy_async authors"
copyright = author  # noqa: A001 - the name Sphinx gives it
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated", "examples"]
nitpicky = True

smartquotes = False  # "--opt-in" is no dash

html_theme = "furo"
html_title = f"alloy_async {release}"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_google_docstring = True

# What stands in a public signature, and is nobody's business by its name.
nitpick_ignore = [
    ("py:class", "alloy_async.testing._clock.ArrangedCall"),
    ("py:class", "alloy_async.blocking.T"),
]
# Starlette and FastAPI publish no inventory; the others stand for callables and a few texts, and are said in words.
nitpick_ignore_regex = [
    ("py:class", r"((starlette|fastapi)\.[\w.]+)|Starlette|App|KeyOf|Action|Choice"),
]

# Drawn and listed from the code, each time.
GENERATED = DOCS / "_generated"
GENERATED.mkdir(exist_ok=True)
for name, content in {
    "command-line.md": command_page.command_sections().encode(),
    "gate.md": diagrams.gate_table().encode(),
    "gate.svg": diagrams.gate_svg().encode(),
    "python.inv": inventory.python_inventory(),
    "settings.md": settings_page.settings_table().encode(),
}.items():
    if not (GENERATED / name).is_file() or (GENERATED / name).read_bytes() != content:
        (GENERATED / name).write_bytes(content)

intersphinx_mapping = {"python": ("https://docs.python.org/3/", str(GENERATED / "python.inv"))}


def _keep_colons(app, what, name, thing, options, lines):
    """Undo that napoleon reads "A future that …: …" as a type and its description; our types are annotations."""
    for type_field, field in ((":type: ", ""), (":rtype: ", ":returns: ")):
        types = [index for index, line in enumerate(lines) if line.startswith(type_field)]
        texts = [index for index, line in enumerate(lines) if line.startswith(field)]
        if types and texts:
            taken = lines.pop(types[-1]).removeprefix(type_field)
            lines[texts[0]] = f"{field}{taken}: {lines[texts[0]].removeprefix(field)}"


def setup(app):
    app.connect("autodoc-process-docstring", _keep_colons, priority=600)  # after napoleon's 500
