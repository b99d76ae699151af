"""The program ``alloy-async``; also ``python -m alloy_async``."""

from __future__ import annotations

import sys

__all__ = ["main"]

_OPTIONAL = frozenset({"rich", "starlette", "typer", "uvicorn"})
"""What the extra ``cli`` brings along."""

_ADVICE = "The command line needs its extra packages; install them with: pip install 'alloy-async[cli]'\n"


def main() -> int:
    """Run the command line with the arguments of the process.

    Returns:
        The exit status; 2, with a sentence that says how to install it, when the extra ``cli`` is missing.
    """
    try:
        from .cli import app  # noqa: PLC0415 - an extra, which the library itself does without

        return int(app(prog_name="alloy-async") or 0)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OPTIONAL:
            raise  # ours or a dependency's own mistake, which no installing would mend
        sys.stderr.write(_ADVICE)
        return 2


if __name__ == "__main__":
    sys.exit(main())
