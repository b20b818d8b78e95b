"""Tests of real engines with the included model: vLLM, its API server, and transformers.

Most tests share one process with vLLM loaded (`tests.engine_host`). Tests about processes
start their own: the demo, a run that is killed, a core that is killed, and a server.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from instructgen.engines import Completion
from instructgen.store import CompletionLine, Run, read_info, read_rows, read_samples
from tests.conftest import ROOT, default_filters
from tests.engine_host import ENVIRONMENT, EngineHost
from tests.hostile.test_models import with_code, without

pytest.importorskip("vllm")

pytestmark = pytest.mark.engine
# The tests of one process share the output of the pipeline.
with_quickstart = pytest.mark.xdist_group("quickstart")
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


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the quickstart pipeline in its reduced version (`--small`)."""
    out = tmp_path_factory.mktemp("demo") / "q"
    steps = run_quickstart(out)
    assert [s["ran"] for s in steps] == [True] * 9
    return out


def run_quickstart(out: Path) -> list[dict[str, Any]]:
    done = run("run", "quickstart", "--small", "--json", "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    steps: list[dict[str, Any]] = orjson.loads(done.stdout)["steps"]
    return steps


@pytest.mark.timeout(1800)
@with_quickstart
def test_the_quickstart_makes_a_dataset_an_adapter_and_a_report(quickstart: Path) -> None:
    """The adapter improves the measure; a second start has nothing left to do."""
    evaluation = orjson.loads((quickstart / "evaluation" / "evaluation.json").read_bytes())
    (measure,) = evaluation["measures"]
    assert measure["difference"]["high"] < 0 and measure["after"]["rows"] == 36
    held = {s.id for s in read_samples(quickstart / "human", split="test")}
    trained = {s.id for s in read_samples(quickstart / "clean", split="train")}
    assert len(held) == 36 and not held & trained
    text = (quickstart / "report.html").read_text()
    assert "<h3>Before and after</h3>" in text and "<h3>Embedding map</h3>" in text
    assert not any(s["ran"] for s in run_quickstart(quickstart))


@with_quickstart
def test_quickstart_rows_are_complete_and_distinct(quickstart: Path) -> None:
    rows = list(read_rows(quickstart / "expanded"))
    assert len(rows) == 4
    assert all(r["instruction"] and r["output"] for r in rows)
    assert {r["origin"]["model"] for r in rows} == {"smollm2"}
    assert {r["license"] for r in rows} == {"CC0-1.0"}
    assert len({r["instruction"] for r in rows}) >= 3


@with_quickstart
def test_a_finished_quickstart_dataset_is_not_generated_again(quickstart: Path) -> None:
    out = quickstart / "expanded"
    before = (out / "journal.jsonl").stat().st_size
    began = time.monotonic()
    options = ("--seeds", quickstart / "human", "--target", 4)
    done = run("generate", *options, "--out", out, "--show", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  output  ") == 3
    assert str(out / "data" / "part-00000.parquet") in done.stdout
    assert str(out / "README.md") in done.stdout
    again = run("generate", *options, "--out", out, "--json")
    assert orjson.loads(again.stdout)["asked"] == 0
    assert (out / "journal.jsonl").stat().st_size == before
    assert time.monotonic() - began < 60


@with_quickstart
def test_explain_shows_the_origin_of_a_generated_row(quickstart: Path) -> None:
    out = quickstart / "expanded"
    row = next(read_rows(out))
    done = run("explain", out, row["id"])
    assert done.returncode == 0
    for text in ("model smollm2", "nearest", "instances", *row["origin"]["parents"]):
        assert text in done.stdout


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
    args = ["generate", "--seeds", GENERAL, "--target", "3", "--in-flight", "2"]
    args += ["--recipe", recipe, "--out", out]
    process = subprocess.Popen(
        [COMMAND, *map(str, args), "-q"], env=ENVIRONMENT, start_new_session=True
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
    done = engine_host.run(*args, "--json")
    assert done.code == 0, done.stderr[-3000:]
    result = orjson.loads(done.stdout)
    assert result["rows"] >= 3
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
    args += ["--in-flight", 4, "--max-tokens-total", 1_500]
    done = engine_host.run(*args, most_tokens=600)
    assert done.code in (0, 3), done.stderr[-3000:]
    form = read_info(out).form
    assert (form["style"], form["structured"]) == ("chat", True)
    finished = [c for c in recorded(out) if c.finish_reason == "stop"]
    assert finished
    assert all(isinstance(orjson.loads(c.text), dict) for c in finished)


# -- a real OpenAI-compatible server ----------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of vLLM's own API server with the included model."""
    from instructgen.models.folders import prepare_embedded

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(prepare_embedded()), "--served-model-name", "smol"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048"]
    argv += ["--enforce-eager", "--dtype", "bfloat16", "--no-enable-chunked-prefill"]
    argv += ["--max-num-batched-tokens", "4096"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            argv,
            stdout=file,
            stderr=file,
            env={**ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "1"},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                time.sleep(1)
        else:
            pytest.fail("the server did not start")
        yield f"{url}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_openai_engine_with_a_real_server(server: str, tmp_path: Path) -> None:
    from instructgen.engines import Request, Sampling, ask
    from instructgen.engines.openai import OpenAIEngine
    from instructgen.engines.supervisor import Supervisor
    from instructgen.errors import EngineError

    engine = OpenAIEngine(model="smol", base_url=server)
    supervisor = Supervisor(engine)
    assert supervisor.enforces_schemas()
    supervisor.close()
    good = Request("The capital of France is", Sampling(temperature=0, max_tokens=8))
    answers = dict(ask(engine, [good, Request("word " * 3000, Sampling()), good]))
    assert "Paris" in answers[0].text
    assert "Paris" in answers[2].text
    assert (answers[0].prompt_tokens, answers[0].output_tokens) == (5, 8)
    assert answers[1].finish_reason == "error"
    assert "HTTP 400" in str(answers[1].error)
    engine.close()
    unknown = OpenAIEngine(model="nope", base_url=server)
    with pytest.raises(EngineError, match="HTTP 404"):
        list(ask(unknown, [good]))
    unknown.close()

    recipe = tmp_path / "server.toml"
    filters = default_filters()
    recipe.write_text(
        f'[method]\nstyle = "completion"\n[engine]\nname = "openai"\nmodel = "smol"\n'
        f'base_url = "{server}"\n{filters}'
    )
    out = tmp_path / "run"
    args = ["--seeds", GENERAL, "--target", 1, "--recipe", recipe, "--in-flight", 4]
    done = run("generate", *args, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(read_rows(out))) == 1


def test_vllm_samples_from_the_weights_passed_to_it(
    engine_host: EngineHost, tmp_path: Path
) -> None:
    """CPU rollouts use merged adapters from the start, and the new weights after a step."""
    script(
        engine_host,
        f"""
        import torch
        from pathlib import Path
        from peft import LoraConfig, get_peft_model
        from instructgen.training.options import GroupOptions
        from instructgen.models.loading import load_model, load_tokenizer
        from instructgen.training.policy import require_training_packages
        from instructgen.training.rollouts import vllm_sampler
        require_training_packages()
        tokenizer = load_tokenizer("smollm2")
        options = GroupOptions(max_length=256)
        sample = vllm_sampler(tokenizer, options, Path({str(tmp_path)!r}))
        torch.manual_seed(0)
        model = load_model("smollm2", tokenizer=tokenizer)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear")).eval()
        def perturb(size):
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B" in name:
                        weight.normal_(0, size)
        prompt = tokenizer("The capital of France is")["input_ids"]
        def expected():
            with torch.no_grad():
                ids = torch.tensor([prompt])
                return model.generate(input_ids=ids, do_sample=False, max_new_tokens=8)[
                    0, len(prompt):].tolist()
        texts = []
        for step, size in enumerate((0.0, 0.02)):
            perturb(size)
            completions = sample(model, step, [prompt, prompt], 8, 0.0)
            assert completions[0] == completions[1] == expected(), (completions, expected())
            texts.append(tokenizer.decode(completions[0]))
        assert "Paris" in texts[0] and texts[0] != texts[1], texts
        """,
    )


def test_grpo_with_rollouts_by_vllm(engine_host: EngineHost, tmp_path: Path) -> None:
    """Run the whole command with LoRA adapters; the rollout folder is deleted at the end."""
    data = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"Name fruit number {i}.", "output": "Fig."} for i in range(24)]
    data.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    assert run("import", data, "--license", "MIT", "--out", tmp_path / "data").returncode == 0
    done = engine_host.run(
        "train", "grpo", tmp_path / "data", "--reward", "verifiers:ifeval", "--peft", "lora",
        "--steps", 2, "--batch-size", 2, "--max-length", 256, "--learning-rate", 1e-3,
        "--set", "max_new_tokens=24", "--set", "rollouts=vllm", "--set", "evaluate=false",
        "--out", tmp_path / "rl",
    )  # fmt: skip
    assert done.code == 0, done.stderr[-3000:]
    log = [orjson.loads(line) for line in (tmp_path / "rl" / "log.jsonl").read_bytes().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2]
    assert all(0 < entry["completions/mean_length"] <= 24 for entry in log)
    assert all(0 <= entry["reward"] <= 1 for entry in log)
    assert not (tmp_path / "rl" / ".rollout").exists()


def test_two_replicas_with_vllm_of_which_one_is_killed(tiny: Path) -> None:
    """Each has its own process and cores; the requests of the killed one are answered."""
    from instructgen.distributed.placement import Placement
    from instructgen.distributed.processes import ProcessEngine
    from instructgen.distributed.replicas import ReplicatedEngine, incidents
    from instructgen.engines import Request, Sampling
    from instructgen.engines.supervisor import Supervisor
    from instructgen.engines.vllm import VllmEngine
    from instructgen.generation.sequencer import answer_all

    model = VllmEngine(model=str(tiny), max_model_len=512, cpu_kvcache_gib=1, max_num_seqs=4)
    requests = [Request(f"the cat {i}", Sampling(max_tokens=120, seed=i)) for i in range(120)]
    with Placement(replicas=2).engine(model) as engine:
        assert isinstance(engine, ReplicatedEngine)
        supervisor = Supervisor(engine)
        try:
            supervisor.start()
            first = engine._replicas[0].supervisor.engine
            assert isinstance(first, ProcessEngine)
            killed: list[int] = []

            def watch(count: int) -> None:
                if count >= 20 and not killed and first._process is not None:
                    killed.append(first._process.pid)
                    os.kill(first._process.pid, signal.SIGKILL)

            completions = answer_all(supervisor, requests, watch=watch)
            cores = {engine._replicas[k].supervisor.engine._cores for k in range(2)}  # type: ignore[attr-defined]
            restarts, lost = incidents([supervisor])
        finally:
            supervisor.close()
    assert killed
    assert (restarts, lost) == (1, [])
    assert len(cores) == 2
    assert all(c.finish_reason != "error" and c.output_tokens for c in completions)
