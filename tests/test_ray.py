"""Replicas, curation and deduplication on a local Ray cluster of several nodes, with failures.

All tests share one cluster; those that remove a node add another one.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import instructgen
from instructgen.errors import ConfigError, EngineError
from instructgen.store import CompletionLine, IssueLine, Run
from tests.conftest import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
ray = pytest.importorskip("ray", reason="Ray is not installed")
_NODE = {"object_store_memory": 100 * 2**20}


class Nodes:
    """A cluster of three nodes with one core each; the first has the driver."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "num_gpus": 0, **_NODE},
        )
        self.others = [self.add() for _ in range(2)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, num_gpus=0, **_NODE)

    def replace(self) -> None:
        """Remove a node without warning, and add another one."""
        self.cluster.remove_node(self.others.pop(0), allow_graceful=False)
        self.others.append(self.add())


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    # Commands use this connection, so that the workers need not import everything again.
    ray.init(started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.cluster.shutdown()


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of a few words, among them equal and similar ones."""
    import random

    rng = random.Random(seed)
    words = [f"word{i}" for i in range(40)]
    made: list[dict[str, str]] = []
    for _ in range(count):
        if made and rng.random() < 0.3:
            row = dict(rng.choice(made))
            if rng.random() < 0.7:
                parts = row["instruction"].split()
                parts[rng.randrange(len(parts))] = rng.choice(words)
                row["instruction"] = " ".join(parts)
        else:
            size = rng.randrange(4, 15)
            row = {
                "instruction": " ".join(rng.choices(words, k=size)),
                "output": " ".join(rng.choices(words, k=rng.randrange(2, 30))),
            }
        made.append(row)
    return made


def dataset(folder: Path, made: list[dict[str, str]]) -> Path:
    file = folder.with_suffix(".jsonl")
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in made))
    terms = {"license": "CC0-1.0", "source": "made", "language": "en"}
    return instructgen.import_data(file, folder, **terms).out


def same(here: Path, there: Path) -> None:
    """The files are equal, except for the name of the folder in the card."""
    parts = sorted(p.relative_to(here) for p in here.rglob("*.parquet"))
    assert parts == sorted(p.relative_to(there) for p in there.rglob("*.parquet"))
    for path in (*parts, "manifest.json", "provenance.json"):
        assert (here / path).read_bytes() == (there / path).read_bytes(), path


def test_curation_gives_the_same_files(nodes: Nodes, tmp_path: Path) -> None:
    """The filters of `strict` select among all rows; see below for `default`, which compares them."""
    recipe = "strict"
    data = dataset(tmp_path / "data", rows(5500))
    here = instructgen.curate(data, tmp_path / "a" / "kept", recipe=recipe)
    there = instructgen.curate(data, tmp_path / "b" / "kept", recipe=recipe, ray=nodes.address)
    assert here.rejected > 500
    same(here.out, there.out)
    again = instructgen.curate(data, there.out, recipe=recipe)
    assert again.unchanged


def test_deduplication_gives_the_same_files(nodes: Nodes, tmp_path: Path) -> None:
    inputs = [dataset(tmp_path / name, rows(1000, seed)) for seed, name in enumerate("xy")]
    how = ["exact", "minhash", "rouge_l"]
    here = instructgen.dedup(inputs, tmp_path / "a" / "kept", how=how)
    there = instructgen.dedup(inputs, tmp_path / "b" / "kept", how=how, ray=nodes.address)
    assert here.rejected > 100
    assert here.facts == there.facts
    same(here.out, there.out)


_WORDS = st.sampled_from(["red", "green", "blue", "not", "7", "8", "house", "Haus", "家"])
_TEXT = st.lists(_WORDS, max_size=8).map(" ".join)
_ROWS = st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=60)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    made=_ROWS,
    cuts=st.lists(st.integers(1, 59), max_size=3),
    tasks=st.integers(1, 5),
    threshold=st.sampled_from([0.5, 0.7]),
)
def test_any_division_finds_the_same_pairs(
    nodes: Nodes, made: list[tuple[str, str]], cuts: list[int], tasks: int, threshold: float
) -> None:
    """The functions of the workers, called here: rows in blocks, and keys divided among tasks."""
    import numpy as np
    import pyarrow as pa

    from instructgen.distributed import duplicates
    from instructgen.distributed.blocks import Numbered
    from instructgen.schema.sample import Sample
    from instructgen.similarity.dedup_rows import ComparedRows, Describer
    from instructgen.similarity.minhash_pairs import FoundPairs, minhash_pairs

    samples = [
        Sample(instruction, output=output, license="CC0-1.0") for instruction, output in made
    ]
    describer = Describer("row", ("length",), (), limited=False)
    rows = ComparedRows(describer, None)
    rows.extend(samples)
    group, first = rows.groups(())
    texts, _, keys = rows.columns(first)
    here = minhash_pairs([texts, *keys], threshold)

    edges = sorted({0, *(cut for cut in cuts if cut < len(samples)), len(samples)})
    blocks = [
        table
        for a, b in itertools.pairwise(edges)
        for table in duplicates._described(Numbered(a, samples[a:b]), describer)
    ]
    again, filled = duplicates._numbers(Batches(blocks), describer, None)
    assert [array.tolist() for array in again.groups(())] == [group.tolist(), first.tolist()]
    columns = [0, *(k for k in range(2, describer.columns) if filled[k])]
    number = np.full(len(group), -1, np.int64)
    number[first] = np.arange(len(first))
    shared = [ray.put(number)]
    words = [duplicates._words(block, threshold, columns, shared) for block in blocks]
    references = [ray.put(each) for each in words]
    flat = pa.concat_tables([duplicates._keys(each, tasks) for each in words])
    found = FoundPairs()
    for task in range(tasks):
        part = flat.filter(pa.array(flat.column("task").to_numpy() == task))
        pairs = duplicates._searched(part, threshold, len(columns), references, len(first))
        found.add(pairs.column("pair").to_numpy(), pairs.column("score").to_numpy())
    there = found.pairs()
    assert here.text.tolist() == there.text.tolist()
    assert here.row.tolist() == there.row.tolist()
    assert here.score.tolist() == there.score.tolist()


class Batches:
    """Tables that are iterated over like a Ray dataset."""

    def __init__(self, tables: list[Any]) -> None:
        self._tables = tables

    def iter_batches(self, **options: Any) -> Iterator[Any]:
        return iter(self._tables)


def test_a_node_that_is_lost_while_rows_are_curated(nodes: Nodes, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", rows(8_000))
    here = instructgen.curate(data, tmp_path / "a" / "kept", recipe="default")
    lost = threading.Event()

    def watch(event: Any) -> None:
        if event.done > 2000 and not lost.is_set():
            lost.set()
            nodes.replace()

    there = instructgen.curate(
        data, tmp_path / "b" / "kept", recipe="default", ray=nodes.address, watch=watch
    )
    assert lost.is_set()
    same(here.out, there.out)


def test_a_filter_with_a_model_runs_in_actors(nodes: Nodes, tmp_path: Path, tiny: Path) -> None:
    data = dataset(tmp_path / "data", rows(60))
    recipe = tmp_path / "recipe.toml"
    text = '[[filters]]\nname = "length"\n[[filters]]\nname = "perplexity"\nmax = 1e9\n'
    recipe.write_text(f'{text}model = "{tiny}"\n[[filters]]\nname = "repetition"\n')
    here = instructgen.curate(data, tmp_path / "a" / "kept", recipe=recipe)
    there = instructgen.curate(data, tmp_path / "b" / "kept", recipe=recipe, ray=nodes.address)
    assert here.facts.filters == there.facts.filters == ("length", "perplexity", "repetition")
    same(here.out, there.out)


# -- generation -------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"engine": "echo", "recipe": "self_instruct", "target": 12}


def asked(run: Path) -> tuple[int, int]:
    """The numbers of requests and of completions in a journal, each of them different."""
    with Run.view(run) as view:
        lines = [line for _, line in view.lines()]
    issued = [line.n for line in lines if isinstance(line, IssueLine)]
    completed = [line.n for line in lines if isinstance(line, CompletionLine)]
    assert len(set(issued)) == len(issued)
    assert len(set(completed)) == len(completed)
    return len(issued), len(completed)


def test_replicas_on_a_cluster_give_the_same_rows(
    nodes: Nodes, tmp_path: Path, seeds_file: Path
) -> None:
    here = instructgen.generate(seeds_file, out=tmp_path / "a", **OPTIONS)
    there = instructgen.generate(
        seeds_file, out=tmp_path / "b", replicas=3, ray=nodes.address, **OPTIONS
    )
    parts = [sorted((run.out / "data").glob("*.parquet")) for run in (here, there)]
    assert [p.read_bytes() for p in parts[0]] == [p.read_bytes() for p in parts[1]]
    assert here.facts == there.facts


def test_a_node_that_is_lost_while_rows_are_generated(
    nodes: Nodes, tmp_path: Path, seeds_file: Path
) -> None:
    lost = threading.Event()

    def watch(event: Any) -> None:
        if event.done >= 2 and not lost.is_set():
            lost.set()
            nodes.replace()

    options = {**OPTIONS, "settings": {"engine.delay_s": 0.02, "engine.max_restarts": 5}}
    run = instructgen.generate(
        seeds_file, out=tmp_path / "run", replicas=3, ray=nodes.address, watch=watch, **options
    )
    assert lost.is_set()
    assert run.rows == 12
    here = instructgen.generate(seeds_file, out=tmp_path / "here", **options)
    assert here.facts == run.facts
    asked(run.out)


def test_the_coordinator_is_killed(nodes: Nodes, tmp_path: Path, seeds_file: Path) -> None:
    """No completion that was recorded is asked again, and the cluster has no replica left."""
    out = tmp_path / "run"
    words = ["generate", "--seeds", str(seeds_file), "--target", "12", "--out", str(out)]
    words += ["--engine", "echo", "--recipe", "self_instruct", "--replicas", "2"]
    words += ["--ray", nodes.address, "--set", "engine.delay_s=0.02"]
    command = [sys.executable, "-m", "instructgen", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        journal = out / "journal.jsonl"
        while p.poll() is None and (
            not journal.exists() or journal.read_bytes().count(b'"completion"') < 20
        ):
            time.sleep(0.02)
        p.send_signal(signal.SIGKILL)
    before = asked(out)
    assert before[1] >= 20
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked(out)
    reference = instructgen.generate(seeds_file, out=tmp_path / "here", **OPTIONS)
    parts = [sorted((folder / "data").glob("*.parquet")) for folder in (out, reference.out)]
    assert [p.read_bytes() for p in parts[0]] == [p.read_bytes() for p in parts[1]]


def replicated(count: int) -> Any:
    """An engine with replicas that take a whole core each."""
    from instructgen.distributed.actors import ActorEngine, ray_replicas
    from instructgen.distributed.replicas import ReplicatedEngine
    from instructgen.engines.echo import EchoEngine

    replicas = ray_replicas(ray, EchoEngine(), count)
    for _, engine in replicas:
        assert isinstance(engine, ActorEngine)
        engine._bundle = {"CPU": 1.0}
    return ReplicatedEngine.of(EchoEngine(), replicas)


def ready(engine: Any, count: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if sum(replica.supervisor.ready for replica in engine._replicas) == count:
            return True
        time.sleep(0.1)
    return False


def test_a_replica_joins_when_a_node_joins(nodes: Nodes) -> None:
    engine = replicated(4)
    try:
        engine.start()
        assert ready(engine, 3)
        assert engine.window() == 3 * 4
        nodes.others.append(nodes.add())
        assert ready(engine, 4)
        assert engine.window() == 4 * 4
    finally:
        engine.close()
        nodes.cluster.remove_node(nodes.others.pop())


def test_no_node_is_free(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    from instructgen.distributed import actors

    monkeypatch.setattr(actors, "_PATIENCE_S", 2.0)
    cores = int(ray.cluster_resources()["CPU"])
    groups = [ray.util.placement_group([{"CPU": 1}]) for _ in range(cores)]
    assert all(group.wait(30) for group in groups)
    engine = replicated(2)
    try:
        with pytest.raises(EngineError, match=r"no node .* free"):
            engine.start()
    finally:
        engine.close()
        for group in groups:
            ray.util.remove_placement_group(group)


def test_all_replicas_die_and_no_node_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster where a placement group is never ready, after the replicas had one."""
    from types import SimpleNamespace

    from instructgen.distributed import actors

    monkeypatch.setattr(actors, "_PATIENCE_S", 0.3)
    full = SimpleNamespace(wait=lambda seconds: time.sleep(0.05))
    util = SimpleNamespace(
        placement_group=lambda *a, **k: full, remove_placement_group=lambda group: None
    )
    fake = SimpleNamespace(util=util, is_initialized=lambda: True, kill=lambda actor: None)
    placed: set[int] = set()
    engines = [actors.ActorEngine() for _ in range(2)]
    for engine in engines:
        engine._ray, engine._placed, engine._actor = fake, placed, object()
        placed.add(id(engine))
    for engine in engines:
        engine.close()
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no node .* free"):
        engines[0].restart()
    assert time.monotonic() - began < 10


# -- messages ---------------------------------------------------------------------------------


def rejected(tmp_path: Path, seeds_file: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        instructgen.generate(seeds_file, out=tmp_path / "run", **{**OPTIONS, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_wrong_address(nodes: Nodes, tmp_path: Path, seeds_file: Path) -> None:
    assert nodes.address in rejected(tmp_path, seeds_file, ray="127.0.0.1:1")
    began = time.monotonic()
    code = (
        "import sys, instructgen\n"
        "from instructgen.errors import ConfigError\n"
        "for address in sys.argv[3:]:\n"
        "    try:\n"
        "        instructgen.generate(sys.argv[1], 1, sys.argv[2], engine='echo', ray=address)\n"
        "    except ConfigError as error:\n"
        "        assert address in str(error), error\n"
        "        print('rejected')\n"
    )
    addresses = ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:10001", "host:x", "a:b:99999999"]
    command = [sys.executable, "-c", code, str(seeds_file), str(tmp_path / "run"), *addresses]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["rejected"] * len(addresses)
    assert time.monotonic() - began < 40


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, seeds_file: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from instructgen.__main__ import main\n"
        "sys.argv = ['instructgen', *sys.argv[1:]]\n"
        "main()\n"
    )
    words = ["generate", "--seeds", str(seeds_file), "--target", "1", "--engine", "echo"]
    words += ["--out", str(tmp_path / "run"), "--ray", "auto"]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "instructgen[ray]" in done.stderr and "Traceback" not in done.stderr
    command = [sys.executable, "-c", code, *words[:-2]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_node_is_large_enough(nodes: Nodes, tmp_path: Path, seeds_file: Path) -> None:
    from instructgen.distributed.actors import ray_replicas
    from instructgen.distributed.cluster import connected
    from instructgen.engines.vllm import VllmEngine

    class Two(VllmEngine):
        """An engine for two GPUs, on a cluster that has one on each node."""

    with connected(nodes.address) as module:

        class Resources:
            """The cluster, as if each node had a GPU."""

            @staticmethod
            def nodes() -> Any:
                return [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}] * 3

            @staticmethod
            def cluster_resources() -> Any:
                return {"CPU": 24.0, "GPU": 3.0}

        assert module.nodes()
        with pytest.raises(ConfigError, match="2 GPU"):
            ray_replicas(Resources, Two(model="m", tensor_parallel_size=2), 1)


def test_another_version_on_a_node(
    nodes: Nodes, tmp_path: Path, seeds_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instructgen.distributed import actors

    monkeypatch.setattr(actors, "__version__", "0.0.1")
    message = rejected(tmp_path, seeds_file, ray=nodes.address, replicas=2)
    assert "0.0.1" in message and instructgen.__version__ in message


def _divides(value: int) -> Iterator[float]:
    yield 1 / value


def test_an_error_of_a_worker_is_the_error_of_the_command(nodes: Nodes, tmp_path: Path) -> None:
    from instructgen.distributed import blocks
    from instructgen.errors import DamagedFileError, RunError
    from instructgen.store import Piece

    data = dataset(tmp_path / "data", rows(10))
    cluster = blocks.RayCluster(ray)
    changed = Piece(data, "0" * 64, "data/part-00000.parquet", 0, 10)
    with pytest.raises(RunError, match="another dataset") as error:
        list(cluster.values(cluster.mapped(cluster.items([(changed, 0)]), blocks._read)))
    # It is ours, and not Ray's with a traceback in its text.
    assert type(error.value) is RunError and "\n" not in str(error.value)
    (part,) = (data / "data").iterdir()
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DamagedFileError) as damaged:
        instructgen.curate(data, tmp_path / "clean", ray=nodes.address)
    assert "\n" not in str(damaged.value)
    with pytest.raises(EngineError, match=r"ZeroDivisionError|division by zero") as other:
        list(cluster.values(cluster.mapped(cluster.items([0]), _divides)))
    assert "\n" not in str(other.value)


@pytest.mark.parametrize(("value", "allowed"), [("auto", True), ("10.0.0.1:6379", False)])
def test_a_pipeline_names_no_cluster(tmp_path: Path, value: str, allowed: bool) -> None:
    from instructgen.pipeline.definition import load_steps

    file = tmp_path / "pipeline.toml"
    file.write_text(
        '[inputs.rows]\nabout = "rows"\n[[steps]]\nname = "kept"\n'
        f'run = "curate @rows"\nray = "{value}"\n'
    )
    inputs = {"rows": str(tmp_path)}
    if allowed:
        assert load_steps(str(file), tmp_path / "out", inputs, small=False)
        return
    with pytest.raises(ConfigError, match="cluster"):
        load_steps(str(file), tmp_path / "out", inputs, small=False)


def test_a_file_is_not_read_by_workers(nodes: Nodes, tmp_path: Path, seeds_file: Path) -> None:
    with pytest.raises(ConfigError, match="import"):
        instructgen.dedup([seeds_file], tmp_path / "out", ray=nodes.address)
