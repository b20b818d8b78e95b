"""Tests of the verifiers: what they accept, and that answers cannot trick or hang them."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from instructgen.plugins import find
from instructgen.schema.sample import Label, Sample
from instructgen.training.rewards import VerifierReward, rewards_of, tasks_of
from instructgen.verifiers.code import Code
from instructgen.verifiers.constraints import LABEL, Constraint
from instructgen.verifiers.exact import Exact
from instructgen.verifiers.ifeval import IfEval
from instructgen.verifiers.math import Math, final_number
from instructgen.verifiers.regex import Regex
from tests.conftest import real

RNG = random.Random(0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9 + 9 = 18\n#### 18", 18),
        ("The answer is 1,234.50.", Fraction("1234.5")),
        (r"so \boxed{3/4} of it", Fraction(3, 4)),
        ("First 3, then 7 apples", 7),
        ("#### -5 and not 6", -5),
        ("no number here", None),
        ("#### 1/0", None),
        (r"\boxed{1e999999999}", 999999999),
        (r"\boxed{9**9**9}", 9),
        ("#### " + "9" * 100, None),
    ],
)
def test_final_number(text: str, number) -> None:
    assert final_number(text) == number


def test_math_gives_a_wrong_marked_number_partial_credit() -> None:
    task = Sample("How many?", output="2 + 2 = 4\n#### 4")
    verifier = Math()
    assert verifier.task(task, RNG) is task
    assert verifier.check(task, "I think so. #### 4") == 1.0
    assert verifier.check(task, "#### 5") == pytest.approx(0.1)
    assert verifier.check(task, "It is 5") == 0.0
    assert verifier.check(task, "None.") == 0.0
    assert verifier.task(Sample("Why?", output="Because."), RNG) is None


def test_math_accepts_the_reference_answers_of_gsm8k() -> None:
    lines = real("gsm8k/test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    verifier = Math()
    accepted = accepted_other = 0
    for row, other in pairwise(rows):
        task = Sample(row["question"], output=row["answer"])
        assert verifier.task(task, RNG) is task
        accepted += verifier.check(task, row["answer"]) == 1.0
        accepted_other += verifier.check(task, other["answer"]) == 1.0
    assert accepted == len(rows) - 1
    # Neighboring questions sometimes have the same answer.
    assert accepted_other < 0.05 * len(rows)


def test_exact_ignores_only_case_spaces_and_the_last_period() -> None:
    task = Sample("Capital of France?", output="Paris.")
    assert Exact().check(task, " paris ") == 1.0
    assert Exact().check(task, "Paris, France") == 0.0


def test_regex_stops_a_slow_pattern() -> None:
    task = Sample("x", output="", labels=(Label("pattern", r"(a+)+$"),))
    verifier = Regex(seconds=0.2)
    assert verifier.task(task, RNG) is task
    start = time.monotonic()
    assert verifier.check(task, "a" * 40 + "!") == 0.0
    assert time.monotonic() - start < 2
    assert verifier.check(task, "aaa") == 1.0
    assert verifier.task(Sample("x", labels=(Label("pattern", "("),)), RNG) is None


def test_ifeval_adds_a_constraint_once() -> None:
    verifier = IfEval()
    task = verifier.task(Sample("Describe the sea.", output="Deep."), random.Random(3))
    constraint = Constraint.loads(next(v.value for v in task.labels if v.name == LABEL))
    assert task.instruction == f"Describe the sea.\n\n{constraint.words}"
    assert verifier.task(task, RNG) is task
    assert verifier.task(Sample("x", labels=(Label(LABEL, "{}"),)), RNG) is None


PASSING = "def add(a, b):\n    return a + b\n"
TESTS = Label("test", "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (PASSING, 1.0),
        (f"Here it is:\n```python\n{PASSING}```\nDone.", 1.0),
        ("def add(a, b):\n    return a - b\n", 0.1),
        ("def add(a, b:\n", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("while True:\n    pass", 0.0),
        ("x = 'a' * 10**10", 0.0),
        ("while True:\n    print('a' * 1000)", 0.0),
        ("open('/etc/passwd', 'a')", 0.0),
        ("import socket\nsocket.create_connection(('192.0.2.1', 80), 1)", 0.0),
        ("import os\nassert 'PATH' not in os.environ" + "\n" + PASSING, 1.0),
        ("", 0.0),
        ("import os\nif os.fork() == 0:\n    import time; time.sleep(99)\n" + PASSING, 1.0),
        ("import os\nfor _ in range(1500):\n    os.mkdir('d'); os.chdir('d')\n" + PASSING, 1.0),
        (
            "import sys, os\n"
            "for x in sys._getframe().f_code.co_consts:\n"
            "    if isinstance(x, str) and len(x) == 32: sys.stdout.write(x)\n"
            "sys.stdout.flush(); os._exit(0)",
            0.1,
        ),
    ],
    ids=lambda v: str(v)[:24],
)
def test_code_is_scored_by_its_tests_alone(answer: str, score: float) -> None:
    task = Sample("Add two numbers.", output="", labels=(TESTS,))
    verifier = Code(seconds=2, megabytes=256)
    assert verifier.task(task, RNG) is task
    assert verifier.check(task, answer) == pytest.approx(score)
    remaining = Path(tempfile.gettempdir()).glob("instructgen-code-*")
    assert not list(remaining)


@pytest.mark.slow
def test_humaneval_solutions_pass_their_tests() -> None:
    with gzip.open(real("humaneval/HumanEval.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file][:40]
    verifier = Code()
    for row in rows:
        label = Label("test", f"{row['test']}\ncheck({row['entry_point']})")
        task = Sample(row["prompt"], output="", labels=(label,))
        assert verifier.check(task, row["prompt"] + row["canonical_solution"]) == 1.0
        assert verifier.check(task, row["prompt"] + "    return None\n") < 1.0


def test_rewards_are_found_by_name() -> None:
    names = [r.name for r in rewards_of(["verifiers:ifeval,math"])]
    assert names == ["ifeval", "math"]
    assert find("verifiers", "code") is Code


@pytest.mark.parametrize("spec", ["verifiers:", "verifiers:mathh", "verifiers:math,math"])
def test_an_invalid_reward_has_a_one_line_message(spec: str) -> None:
    with pytest.raises(ValueError) as caught:
        rewards_of([spec])
    assert "\n" not in str(caught.value)


def test_tasks_of_separates_rows_that_no_verifier_can_check() -> None:
    rows = [Sample("How many?", output="#### 4"), Sample("Why?", output="Because.")]
    tasks, others = tasks_of(rewards_of(["verifiers:math"]), rows, 0)
    assert (tasks, others) == ([rows[0]], [rows[1]])
    tasks, others = tasks_of(rewards_of(["verifiers:math,ifeval"]), rows, 0)
    assert len(tasks) == 2
    assert not others
    # A reward model scores every row. The constraint that a verifier adds varies between rows.
    samples = [Sample(f"Describe day {i}.", output="It rained.") for i in range(12)]
    tasks, others = tasks_of(rewards_of(["verifiers:ifeval"]), samples, 0, models=True)
    assert (
        len(
            {t.instruction.removeprefix(s.instruction) for t, s in zip(tasks, samples, strict=True)}
        )
        > 4
    )
    assert tasks_of([], samples, 0, models=True) == (samples, [])
    tasks = [rows[0], *tasks[:1]]
    reward = VerifierReward(Math())
    assert reward.score(tasks, ["#### 4", "#### 4"]) == [1.0, None]
