"""Sessions: `nox -s tests` is the one to run while working; `.ci/run` runs them all."""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

MATRIX = ["3.11", "3.13"]
AUTOBAHN = "autobahntestsuite==25.10.1"
# The last line of releases that makes environments for Python 2.7.
VIRTUALENV = "virtualenv==20.21.1"


def install(session: nox.Session, extra: str) -> None:
    """The project as it is here, editable, with an extra."""
    session.install("-q", "-e", f".[{extra}]")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite but its slow part, on the Python that nox itself runs on."""
    install(session, "test")
    session.run("pytest", "-q", "-m", "not slow", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The slow tests: kill -9 rounds, hundreds of sockets, what ours is measured beside."""
    install(session, "test,peers")
    session.run("pytest", "-q", "-m", "slow", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The pages in a headless Chromium of the system's; without one these tests are skipped."""
    install(session, "test,browser")
    session.run("pytest", "-q", "tests/browser", *session.posargs)


@nox.session(python=MATRIX)
def matrix(session: nox.Session) -> None:
    """The whole suite on every supported end of the range of Pythons that is installed."""
    install(session, "test")
    session.run("pytest", "-q", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage: the codec in full, the rest above its mark."""
    install(session, "test")
    session.run("coverage", "run", "-m", "pytest", "-q", "-m", "not slow", *session.posargs)
    session.run("coverage", "report", "--skip-covered", "--fail-under=90")
    session.run("coverage", "report", "--include=persona/rpc/jsonrpc.py", "--fail-under=100")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, async pitfalls, and imports that run one way."""
    install(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    # 9xx demand a checkpoint in every async function; 114 and 124 question how functions are named
    # and declared. Tests may also poll a server that is in another process (110).
    for folders, disabled in (
        (("persona", "loadgen"), "ASYNC9,ASYNC114,ASYNC124"),
        (("tests",), "ASYNC9,ASYNC110,ASYNC113,ASYNC114,ASYNC124"),
    ):
        files = [str(file) for folder in folders for file in Path(folder).rglob("*.py")]
        session.run("flake8-async", f"--disable={disabled}", *files)
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    install(session, "dev")
    session.run("mypy")


@nox.session
def demo(session: nox.Session) -> None:
    """What a newcomer does first: install, and say hello. Nothing but the plain install."""
    session.install("-q", ".")
    database = session.create_tmp() + "/demo.db"
    session.run("persona", "demo", "--db", database, "--say", *(session.posargs or ["Hello, Aria!"]))


@nox.session
def bench(session: nox.Session) -> None:
    """Ours beside other servers, as ratios: the tables of docs/performance.md. Takes some minutes."""
    install(session, "peers")
    session.run("loadgen", "bench", *session.posargs)


@nox.session
def loadgen(session: nox.Session) -> None:
    """A load test with a page to show; `nox -s loadgen -- run soak --duration 3600` for another one."""
    install(session, "loadgen")
    session.run("loadgen", *(session.posargs or ["run", "ramp"]))


@nox.session
def autobahn(session: nox.Session) -> None:
    """Autobahn's fuzzing client against both engines; needs a Python 2.7 for the client."""
    python = find_python27(session)
    if python is None:
        session.skip("no Python 2.7 found, and Autobahn's fuzzing client runs on nothing newer")
    install(session, "test")
    session.install("-q", VIRTUALENV)
    folder = Path(session.create_tmp())
    client = folder / "python2.7"
    session.run("virtualenv", "-q", "-p", python, str(client))
    pip = ("-m", "pip", "--no-python-version-warning", "install", "-q")
    session.run(str(client / "bin/python"), *pip, AUTOBAHN, external=True)
    session.run("python", "-m", "tests.autobahn", str(client / "bin/wstest"), str(folder))


def find_python27(session: nox.Session) -> str | None:
    """The first Python 2.7 that works: on the path, where it may be a shim of pyenv's for a version that is
    not chosen, or among pyenv's versions."""

    def output(*command: str) -> str:
        return str(session.run(*command, external=True, silent=True, log=False, success_codes=range(256)))

    candidates = [shutil.which("python2.7")]
    if shutil.which("pyenv"):
        root = Path(output("pyenv", "root").strip())
        candidates += map(str, sorted(root.glob("versions/2.7*/bin/python2.7")))
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    for python in candidates:
        if python is not None and output(python, "-c", version).strip() == "2.7":
            return python
    return None
