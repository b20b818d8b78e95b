"""Tests of the engines vllm and transformers with the included model.

Most tests share one process with vLLM loaded (`tests.engine_host`). The test that kills a core and
a run starts its own. Servers, replicas and rollouts are in tests/test_real_servers.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from instructgen.engines import Completion
from instructgen.store import CompletionLine, Run, read_info, read_rows
from tests.conftest import ROOT, default_filters
from tests.engine_host import ENVIRONMENT, EngineHost
from tests.hostile.test_models import with_code, without

pytest.importorskip("vllm")

pytestmark = pytest.mark.engine
COMMAND = str(Path(sys.executable).parent / "instructgen")
GENERAL = ROOT / "seeds" / "general.jsonl"
HEAD = """
import os
from instructgen.engines import Request, Sampling
from instructgen.engines.supervisor import Supervisor
from instructgen.engines.vllm import VllmEngine
from instructgen.engines.transformers import TransformersEngine
from instructgen.schema import Message

def complete(engine, requests):
    supervisor = Supervisor(engine)
    try:
        for number, request in enumerate(requests):
            supervisor.submit(number, request)
        return dict(supervisor.receive() for _ in requests)
    finally:
        supervisor.close()

def enforces_schemas(engine):
    supervisor = Supervisor(engine)
    try:
        return supervisor.enforces_schemas()
    finally:
        supervisor.close()
"""


def script(host: EngineHost, body: str) -> None:
    """Run a script with assertions in the process with the loaded model."""
    done = host.script(HEAD + textwrap.dedent(body))
    assert done.code == 0, done.stderr[-3000:]


def run(*args: object, timeout: int = 840) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process, as a user does."""
    return subprocess.run(
        [COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=ENVIRONMENT,
    )


def test_vllm_enforces_schemas_and_a_failed_request_affects_no_other(
    engine_host: EngineHost,
) -> None:
    script(
        engine_host,
        """
        import orjson
        engine = VllmEngine(model="smollm2", max_model_len=2048)
        assert engine.has_chat_template()
        assert enforces_schemas(engine)
        good = Request("The capital of France is", Sampling(temperature=0, max_tokens=8))
        for bad, least, most in (
            (Request("", Sampling()), 0, 0),
            (Request("word " * 3000, Sampling()), 2048, 10_000),
        ):
            for at in range(3):
                requests = [good, good, good]
                requests[at] = bad
                answers = complete(engine, requests)
                assert sorted(answers) == [0, 1, 2]
                assert answers[at].finish_reason == "error" and answers[at].error, answers[at]
                assert least <= answers[at].prompt_tokens <= most, answers[at]
                rest = [answers[i] for i in range(3) if i != at]
                assert all("Paris" in c.text and c.output_tokens == 8 for c in rest), rest
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
                  "additionalProperties": False}
        requests = [Request((Message("user", f"Give a number, try {i}."),),
                            Sampling(temperature=0.7, max_tokens=32, seed=i), schema=schema)
                    for i in range(8)]
        parsed = [orjson.loads(c.text) for c in complete(engine, requests).values()
                  if c.finish_reason == "stop"]
        assert len(parsed) >= 6 and all(isinstance(p["n"], int) for p in parsed), parsed
        stopped = Request("1. One\\n2. Two\\n3. Three\\n4.",
                          Sampling(temperature=0, max_tokens=60, stop=("\\n6.",)))
        assert "\\n6." not in complete(engine, [stopped])[0].text
        supervisor = Supervisor(engine)
        supervisor.submit(0, Request("Once upon a time", Sampling(max_tokens=1500, seed=1)))
        supervisor.submit(1, good)
        supervisor.cancel(0)
        number, answer = supervisor.receive()
        assert number == 1 and "Paris" in answer.text
        assert supervisor.receive(1) is None and supervisor.outstanding == 0
        supervisor.close()
        assert "Paris" in complete(engine, [good])[0].text
        """,
    )


def test_vllm_runs_no_code_of_a_model(engine_host: EngineHost, tiny: Path, tmp_path: Path) -> None:
    model, marker = with_code(tiny, tmp_path / "model", "model")
    script(
        engine_host,
        f"""
        from instructgen.errors import ConfigError
        try:
            VllmEngine(model={str(model)!r}, max_model_len=256).load()
        except ConfigError as error:
            assert "trust_remote_code" not in str(error)
        else:
            raise AssertionError("the model was loaded")
        """,
    )
    assert not marker.exists()


def test_vllm_rejects_a_model_with_missing_layers(
    engine_host: EngineHost, tiny: Path, tmp_path: Path
) -> None:
    model = without(tiny, tmp_path / "model", "layers.1.")
    script(
        engine_host,
        f"""
        from instructgen.errors import EngineError
        try:
            VllmEngine(model={str(model)!r}, max_model_len=256).load()
        except EngineError as error:
            assert "layers.1." in str(error), error
        else:
            raise AssertionError("the model was loaded")
        """,
    )


def test_transformers_follows_the_engine_interface(engine_host: EngineHost) -> None:
    script(
        engine_host,
        """
        engine = TransformersEngine(model="smollm2", max_model_len=1024)
        assert engine.has_chat_template() and not enforces_schemas(engine)
        requests = [
            Request("The capital of France is", Sampling(temperature=0, max_tokens=8)),
            Request("", Sampling()),
            Request("word " * 3000, Sampling()),
            Request((Message("user", "Say hello."),), Sampling(temperature=0, max_tokens=300)),
            Request("1, 2, 3,", Sampling(temperature=0, max_tokens=30, stop=("7",))),
            Request("a a a a a a", Sampling(temperature=0, max_tokens=12, presence_penalty=2)),
        ]
        answers = complete(engine, requests)
        assert "Paris" in answers[0].text and answers[0].finish_reason == "length"
        assert answers[1].finish_reason == answers[2].finish_reason == "error"
        assert answers[3].text and answers[3].finish_reason == "stop"
        assert answers[4].text.strip().startswith("4") and "7" not in answers[4].text
        assert answers[4].finish_reason == "stop"
        assert all(answers[i].prompt_tokens > 0 for i in (0, 3, 4, 5))
        """,
    )


def test_penalties_of_transformers_equal_those_of_vllm(engine_host: EngineHost) -> None:
    script(
        engine_host,
        """
        import torch
        from vllm.model_executor.layers.utils import apply_penalties
        from instructgen.engines.transformers import _Penalties
        torch.manual_seed(0)
        prompt, completion = torch.tensor([[1, 2, 3]]), torch.tensor([[3, 4, 4]])
        logits = torch.randn(1, 10)
        ours = _Penalties(3, Sampling(presence_penalty=1.5, frequency_penalty=0.3))(
            torch.cat([prompt, completion], dim=1), logits.clone()
        )
        theirs = apply_penalties(
            logits.clone(), prompt, completion,
            torch.tensor([1.5]), torch.tensor([0.3]), torch.tensor([1.0]),
        )
        assert torch.allclose(ours, theirs)
        """,
    )


def core_of(pid: int) -> int | None:
    """Return the process id of the vLLM core that is a child of process ``pid``, or None."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        name, rest = stat.split("(", 1)[1].rsplit(")", 1)
        state, parent = rest.split()[:2]
        if int(parent) == pid and "EngineCor" in name and state != "Z":
            return int(folder.name)
    return None


def wait_for(process: subprocess.Popen[bytes], what: Callable[[], object]) -> Any:
    deadline = time.monotonic() + 300
    while not (result := what()):
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return result


def recorded(run: Path) -> list[Completion]:
    """Return the completions that the journal of a run contains; the run may be in progress."""
    if not (run / "run.json").exists():
        return []
    with Run.view(run) as view:
        return [line.completion for _, line in view.lines() if isinstance(line, CompletionLine)]


def test_a_killed_core_is_replaced_and_a_killed_run_resumes(
    engine_host: EngineHost, tmp_path: Path
) -> None:
    """Kill vLLM's core, which has its own process, with SIGKILL, and then the run.

    The recipe also compares embeddings, so that numba and sentence-transformers are loaded
    before vLLM starts, and a second model is loaded in addition to vLLM's.
    """
    recipe, out = tmp_path / "two_key.toml", tmp_path / "run"
    text = (ROOT / "filters" / "two_key.toml").read_text()
    recipe.write_text(f'[engine]\nname = "vllm"\nown_process = true\n{text}')
    args = ["generate", "--seeds", GENERAL, "--in-flight", "2", "--recipe", recipe, "--out", out]
    # At most the limit of the shared process, in which the run is resumed.
    for stage, tokens in (("instructions", 64), ("instances", 128)):
        args += ["--set", f"method.{stage}.max_tokens={tokens}"]
    process = subprocess.Popen(
        # A target that it does not reach before it is killed.
        [COMMAND, *map(str, args), "--target", "50", "-q"],
        env=ENVIRONMENT,
        start_new_session=True,
    )
    try:
        wait_for(process, lambda: len(recorded(out)) >= 3)
        first = wait_for(process, lambda: core_of(process.pid))
        os.kill(first, signal.SIGKILL)
        before = len(recorded(out))
        # Wait for a new core; the first one may take a moment to end.
        wait_for(process, lambda: core_of(process.pid) not in (None, first))
        # More than two new completions: those of the first core may still arrive.
        wait_for(process, lambda: len(recorded(out)) >= before + 4)
    finally:
        # Kill the whole group: the workers of the core would otherwise keep running.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    left = len(recorded(out))
    done = engine_host.run(*args, "--target", "1", "--json")
    assert done.code == 0, done.stderr[-3000:]
    result = orjson.loads(done.stdout)
    assert result["rows"] >= 1
    assert result["replayed"] == left
    parts = [p.read_bytes() for p in sorted(out.glob("*/part-*.parquet"))]
    assert run("rebuild", out).returncode == 0
    assert [p.read_bytes() for p in sorted(out.glob("*/part-*.parquet"))] == parts
    done = run("explain", out, next(read_rows(out))["id"], "--json")
    passed = orjson.loads(done.stdout)["passed"]
    assert {"instruction/semantic_duplicate", "instruction/frame_quota"} <= set(passed)


def test_the_chat_style_uses_json_schemas_on_vllm(engine_host: EngineHost, tmp_path: Path) -> None:
    recipe = tmp_path / "chat.toml"
    filters = default_filters()
    recipe.write_text(
        '[method]\nstyle = "chat"\n[method.chat_instructions]\ntemperature = 0.7\ntop_p = 0.95\n'
        f"max_tokens = 600\n{filters}"
    )
    out = tmp_path / "run"
    args = ["generate", "--seeds", GENERAL, "--target", 4, "--out", out, "--recipe", recipe]
    args += ["--in-flight", 2, "--max-tokens-total", 1_500]
    done = engine_host.run(*args, most_tokens=600)
    assert done.code in (0, 3), done.stderr[-3000:]
    form = read_info(out).form
    assert (form["style"], form["structured"]) == ("chat", True)
    finished = [c for c in recorded(out) if c.finish_reason == "stop"]
    assert finished
    assert all(isinstance(orjson.loads(c.text), dict) for c in finished)
