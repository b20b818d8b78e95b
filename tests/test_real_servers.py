"""Tests of vLLM in other processes and servers, and as the sampler of a trainer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from instructgen.store import read_rows
from tests.conftest import default_filters
from tests.engine_host import ENVIRONMENT, EngineHost
from tests.test_real_engines import GENERAL, run, script

pytest.importorskip("vllm")

pytestmark = pytest.mark.engine


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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of vLLM's own API server with the included model."""
    from instructgen.models.folders import prepare_embedded
    from instructgen.models.loading import fastest_dtype

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--model", str(prepare_embedded()), "--served-model-name", "smol"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048"]
    argv += ["--enforce-eager", "--dtype", fastest_dtype(), "--no-enable-chunked-prefill"]
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
