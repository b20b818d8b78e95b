"""Fixtures and settings of all tests: location of real data, order of tests, blocked network."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# With two threads a model of a million parameters is twenty times slower than with one, and
# tests run in parallel. torch reads the variable at import; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import HealthCheck, settings

# Tests that a shell starts in the background ignore Ctrl-C, and their child processes inherit
# this. Tests that interrupt a child process need the default handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from instructgen.engines import QueueEngine, Request
    from tests.engine_host import EngineHost

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("INSTRUCTGEN_DATA", ROOT.parent / "shared" / "data")).resolve()

# In CI a machine without a sandbox is an error.
needs_sandbox = pytest.mark.skipif(
    shutil.which("bwrap") is None and "CI" not in os.environ, reason="bubblewrap is not installed"
)

settings.register_profile(
    "instructgen", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("instructgen")


def pytest_configure(config: pytest.Config) -> None:
    """Give each worker its own temporary folder; some tests check which files remain in it."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="igt-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    config.add_cleanup(lambda: _empty(Path(folder)))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        # multiprocessing deletes its own folder when the process ends.
        if path.is_dir() and not path.name.startswith("pymp-"):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


# The first files of real engines and of the cluster, in an order that keeps two processes busy to the
# end: a process gets its next file when it has two tests left (docs/decisions/0019).
_ENGINE_FILES = ("test_ray", "test_quickstart", "test_readme", "test_curation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run fast tests first, tests that kill processes next, and tests of real engines last."""

    def rank(item: pytest.Item) -> int:
        if item.get_closest_marker("engine") or item.get_closest_marker("cluster"):
            order = [file == item.path.stem for file in _ENGINE_FILES]
            return 2 + (order.index(True) if any(order) else len(order))
        return 1 if item.get_closest_marker("slow") else 0

    items.sort(key=rank)


def real(name: str) -> Path:
    """Return the path of a real dataset; skip the test if it is missing."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in INSTRUCTGEN_DATA")
    return path


def default_filters() -> str:
    """Return the [[filters]] tables of the default recipe, as text to append to other tables."""
    text = (ROOT / "filters" / "default.toml").read_text()
    return text[text.index("[[filters]]") :]


def _is_own(host: str) -> bool:
    """Whether this machine has the address; Ray's nodes on one machine use it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        try:
            own.bind((host, 0))
        except OSError:
            return False
        return True


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        local = self.family == socket.AF_UNIX or (
            isinstance(address, tuple)
            and (str(address[0]) in ("127.0.0.1", "::1", "localhost") or _is_own(str(address[0])))
        )
        if not local:
            raise AssertionError(f"a test connected to {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a million random parameters and its own tokenizer."""
    from tests.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    """A process that loads the included model into vLLM once for all tests."""
    from tests.engine_host import EngineHost

    host = EngineHost(tmp_path_factory.mktemp("host") / "log")
    yield host
    host.close()


@pytest.fixture
def seeds_file(tmp_path: Path) -> Path:
    """Twelve seed tasks in the native format."""
    import orjson

    verbs = (
        "Describe a market in winter for a travel diary",
        "List five uses for an empty jam jar",
        "Explain why bread dough needs to rest before baking",
        "Write a short apology to a neighbor about noise",
        "Compare walking and cycling for a two mile commute",
        "Translate the greeting into three other languages",
        "Suggest names for a small boat club on a lake",
        "Sum the numbers and say whether the total is even",
        "Turn the notes below into a polite invitation",
        "Say whether the review is positive or negative",
        "Plan a quiet birthday for someone who dislikes parties",
        "Shorten this paragraph to a single clear sentence",
    )
    rows = [
        {
            "id": f"t-{i}",
            "instruction": f"{text}.",
            "input": "3 4 5" if i % 2 else "",
            "output": f"An answer about number {i} that is long enough to be used.",
            "kind": "classification" if i == 9 else "generation",
            "category": "writing",
            "language": "en",
            "license": "CC0-1.0",
        }
        for i, text in enumerate(verbs)
    ]
    path = tmp_path / "seeds.jsonl"
    path.write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    return path


def asked(monkeypatch: pytest.MonkeyPatch, engine: type[QueueEngine]) -> list[Request]:
    """Return a list that receives the requests that engines of this kind complete."""
    requests: list[Request] = []
    complete = engine.complete

    def counted(self: QueueEngine, some: list[Request]) -> Any:
        requests.extend(some)
        return complete(self, some)

    monkeypatch.setattr(engine, "complete", counted)
    return requests
