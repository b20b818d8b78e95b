"""A process that loads vLLM once for all tests that use it: ``python -m tests.engine_host``.

It reads one JSON object per line from standard input, ``{"words": [...], "folder": "..."}`` or
``{"script": "..."}``, and runs these command lines and scripts one after the other. A loaded
model stays loaded for the next job with the same model. `tests/test_real_engines.py` uses
separate processes to test that commands load vLLM, close it, and restart it when it dies.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import orjson

# Not imported from tests.conftest, which limits its process to one thread.
ROOT = Path(__file__).resolve().parent.parent

# Each worker of pytest-xdist has its own cores: two engines would otherwise wait for each other.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_ALL = sorted(os.sched_getaffinity(0))
CORES = _ALL[_WORKER::_WORKERS] or [_ALL[_WORKER % len(_ALL)]]
# A real model needs more than the one thread of other tests.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": str(len(CORES)),
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CORES)),
}

_LOADED: dict[tuple[Any, ...], Any] = {}
# The maximum tokens per completion in the current job.
_most = [4096]


class Answer(NamedTuple):
    """The result of a command or a script."""

    code: int
    stdout: str
    stderr: str


class EngineHost:
    """Starts the process and sends it the jobs of the tests."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            # Each loaded model has its own cache, so each cache must be small.
            env={**ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "1"},
        )

    def run(self, *words: object, folder: Path = ROOT, most_tokens: int = 128) -> Answer:
        """Run an instructgen command line; ``most_tokens`` limits completions, to save time."""
        job = {"words": [str(w) for w in words], "folder": str(folder)}
        return self._ask({**job, "most_tokens": most_tokens})

    def script(self, code: str) -> Answer:
        """Run Python code in a new namespace."""
        return self._ask({"script": code})

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _ask(self, job: dict[str, Any]) -> Answer:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(orjson.dumps(job) + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BaseException:
            # After a timeout the answer of this job must not be read as that of the next job.
            self._process.kill()
            raise
        assert line, f"the engine process ended: {Path(self._log.name).read_text()[-3000:]}"
        return Answer(**orjson.loads(line))


def _stay_loaded() -> None:
    """Make the engines of all commands share one vLLM instance per model."""
    from instructgen.engines import vllm
    from instructgen.engines.supervisor import Supervisor
    from instructgen.engines.vllm import VllmEngine
    from instructgen.models.folders import model_folder

    load = VllmEngine.load

    def shared(self: VllmEngine) -> Any:
        key = (str(Path(model_folder(self.model)).resolve()), self.dtype)
        loaded = _LOADED.get(key)
        if loaded is None or loaded.model_config.max_model_len < self.max_model_len:
            _LOADED[key] = load(self)
        return _LOADED[key]

    drop = VllmEngine._drop

    def kept(self: VllmEngine) -> None:
        if self._llm is not None:
            # Completions of a closed engine must not reach the next engine.
            engine = self._llm.llm_engine
            engine.abort_request(list(engine.output_processor.request_states), internal=True)
        # Without its model, the engine only forgets its requests.
        self._llm = None
        drop(self)

    VllmEngine.load, VllmEngine._drop = shared, kept  # type: ignore[method-assign]
    # All models of the process are loaded and run in one thread; see decision 2.
    thread = ThreadPoolExecutor(1)
    own_thread = Supervisor._ensure_thread

    def one_thread(self: Supervisor) -> None:
        if not isinstance(self.engine, VllmEngine):
            own_thread(self)
        elif self._thread is None:
            future = thread.submit(self._run)
            ended = SimpleNamespace(join=lambda timeout: wait([future], timeout))
            self._thread = ended  # type: ignore[assignment]

    Supervisor._ensure_thread = one_thread  # type: ignore[method-assign]
    sampling_params = vllm.sampling_params
    vllm.sampling_params = lambda request, room: sampling_params(request, min(room, _most[0]))


def _done(job: dict[str, Any]) -> Answer:
    from instructgen.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    code, _most[0] = 0, job.get("most_tokens", 4096)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            if "script" in job:
                exec(compile(job["script"], "script", "exec"), {"__name__": "script"})
            else:
                os.chdir(job["folder"])
                sys.argv = ["instructgen", *job["words"]]
                main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            code = 1
            traceback.print_exc()
    return Answer(code, out.getvalue(), err.getvalue())


def _serve() -> None:
    # Runs with similarity filters import numba first. vLLM's CPU build then needs a workaround.
    import numba  # noqa: F401

    # Output of libraries on stdout must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _stay_loaded()
    for line in sys.stdin.buffer:
        answers.write(orjson.dumps(_done(orjson.loads(line))._asdict()) + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
