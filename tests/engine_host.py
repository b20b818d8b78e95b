"""One process in which vLLM is loaded once, for all tests that ask it: ``python -m tests.engine_host``.

It runs command lines and scripts one after the other, as they come on standard input, one JSON
object a line: ``{"words": [...], "folder": "..."}`` or ``{"script": "..."}``. A loaded model
stays loaded for the next that wants the same one. That commands load it themselves, end with
it, and survive its death is tested in processes of their own (`tests/test_real_engines.py`).
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import orjson

# Not that of tests.conftest, which has its process compute with one thread.
ROOT = Path(__file__).resolve().parent.parent

_LOADED: dict[tuple[Any, ...], Any] = {}
# The longest completion that the present job may ask for.
_most = [4096]


class Answer(NamedTuple):
    """What came of a command or a script."""

    code: int
    stdout: str
    stderr: str


class EngineHost:
    """The process, seen from the tests."""

    def __init__(self, log: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        # Of several models that stay loaded each has its own cache.
        environment["VLLM_CPU_KVCACHE_SPACE"] = "1"
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=environment,
        )

    def run(self, *words: object, folder: Path = ROOT, most_tokens: int = 128) -> Answer:
        """A command line of ours; completions are cut at so many tokens, to save time."""
        job = {"words": [str(w) for w in words], "folder": str(folder)}
        return self._ask({**job, "most_tokens": most_tokens})

    def script(self, code: str) -> Answer:
        """Python, in a namespace of its own."""
        return self._ask({"script": code})

    def close(self) -> None:
        """End it."""
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
            # A test that ran out of time: its answer must not be taken for the next one's.
            self._process.kill()
            raise
        assert line, f"the engine's process ended: {Path(self._log.name).read_text()[-3000:]}"
        return Answer(**orjson.loads(line))


def _stay_loaded() -> None:
    """Give the engines of all commands one vLLM for each model."""
    from instructgen.engines import vllm
    from instructgen.engines.vllm import VllmEngine
    from instructgen.models.folders import model_folder

    load = VllmEngine.load

    def shared(self: VllmEngine) -> Any:
        key = (str(Path(model_folder(self.model)).resolve()), self.dtype)
        longest = _LOADED.get(key)
        if longest is None or longest.model_config.max_model_len < self.max_model_len:
            _LOADED[key] = load(self)
        return _LOADED[key]

    def kept(self: VllmEngine) -> None:
        if self._llm is not None:
            # What a closed engine gave up is not answered to the next one.
            engine = self._llm.llm_engine
            engine.abort_request(list(engine.output_processor.request_states), internal=True)
        self._llm, self._thread, self._ended = None, None, None

    VllmEngine.load, VllmEngine._drop = shared, kept  # type: ignore[method-assign]
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
    # As in a run whose filters compare: vLLM's CPU build trips over it unless it is helped.
    import numba  # noqa: F401

    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _stay_loaded()
    for line in sys.stdin.buffer:
        answers.write(orjson.dumps(_done(orjson.loads(line))._asdict()) + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
