"""Programs that judge answers: what they accept, and what cannot fool or stop them."""

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
def test_the_final_number_is_found(text: str, number) -> None:
    assert final_number(text) == number


def test_math_grades_form_below_right() -> None:
    task = Sample("How many?", output="2 + 2 = 4\n#### 4")
    verifier = Math()
    assert verifier.task(task, RNG) is task
    assert verifier.judge(task, "I think so. #### 4") == 1.0
    assert verifier.judge(task, "#### 5") == pytest.approx(0.1)
    assert verifier.judge(task, "It is 5") == 0.0
    assert verifier.judge(task, "None.") == 0.0
    assert verifier.task(Sample("Why?", output="Because."), RNG) is None


def test_gsm8k_agrees_with_its_own_answers() -> None:
    lines = real("gsm8k/test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    verifier = Math()
    right = wrong = 0
    for row, other in pairwise(rows):
        task = Sample(row["question"], output=row["answer"])
        assert verifier.task(task, RNG) is task
        right += verifier.judge(task, row["answer"]) == 1.0
        wrong += verifier.judge(task, other["answer"]) == 1.0
    assert right == len(rows) - 1
    assert wrong < 0.05 * len(rows)


def test_exact_forgives_only_case_and_spaces() -> None:
    task = Sample("Capital of France?", output="Paris.")
    assert Exact().judge(task, " paris ") == 1.0
    assert Exact().judge(task, "Paris, France") == 0.0


def test_a_pattern_cannot_hang_the_run() -> None:
    task = Sample("x", output="", labels=(Label("pattern", r"(a+)+$"),))
    verifier = Regex(seconds=0.2)
    assert verifier.task(task, RNG) is task
    began = time.monotonic()
    assert verifier.judge(task, "a" * 40 + "!") == 0.0
    assert time.monotonic() - began < 2
    assert verifier.judge(task, "aaa") == 1.0
    assert verifier.task(Sample("x", labels=(Label("pattern", "("),)), RNG) is None


def test_constraints_are_put_into_the_task_once() -> None:
    verifier = IfEval()
    task = verifier.task(Sample("Tell of the sea.", output="Deep."), random.Random(3))
    constraint = Constraint.loads(next(v.value for v in task.labels if v.name == LABEL))
    assert task.instruction == f"Tell of the sea.\n\n{constraint.words}"
    assert verifier.task(task, RNG) is task
    assert verifier.task(Sample("x", labels=(Label(LABEL, "{}"),)), RNG) is None


PASSING = "def add(a, b):\n    return a + b\n"
TESTS = Label("test", "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n")


@pytest.mark.parametrize(
    ("answer", "worth"),
    [
        (PASSING, 1.0),
        (f"Here it is:\n```python\n{PASSING}```\nDone.", 1.0),
        ("def add(a, b):\n    return a - b\n", 0.1),
        ("def add(a, b:\n", 0.0),
        ("import os\nos._exit(0)", 0.1),
        ("import sys\nsys.exit(0)", 0.1),
        ("while True:\n    pass", 0.1),
        ("x = 'a' * 10**10", 0.1),
        ("while True:\n    print('a' * 1000)", 0.1),
        ("open('/etc/passwd', 'a')", 0.1),
        ("import socket\nsocket.create_connection(('192.0.2.1', 80), 1)", 0.1),
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
def test_code_is_judged_by_its_tests_alone(answer: str, worth: float) -> None:
    task = Sample("Add two numbers.", output="", labels=(TESTS,))
    verifier = Code(seconds=2, megabytes=256)
    assert verifier.task(task, RNG) is task
    assert verifier.judge(task, answer) == pytest.approx(worth)
    left = Path(tempfile.gettempdir()).glob("instructgen-code-*")
    assert not list(left)


@pytest.mark.slow
def test_humaneval_solutions_pass_their_tests() -> None:
    with gzip.open(real("humaneval/HumanEval.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file][:40]
    verifier = Code()
    for row in rows:
        label = Label("test", f"{row['test']}\ncheck({row['entry_point']})")
        task = Sample(row["prompt"], output="", labels=(label,))
        assert verifier.judge(task, row["prompt"] + row["canonical_solution"]) == 1.0
        assert verifier.judge(task, row["prompt"] + "    return None\n") < 1.0


def test_rewards_are_found_by_name() -> None:
    names = [r.name for r in rewards_of(["verifiers:ifeval,math"])]
    assert names == ["ifeval", "math"]
    assert find("verifiers", "code") is Code


@pytest.mark.parametrize("spec", ["verifiers:", "verifiers:mathh", "verifiers:math,math"])
def test_rewards_that_are_none_are_one_line(spec: str) -> None:
    with pytest.raises(ValueError) as caught:
        rewards_of([spec])
    assert "\n" not in str(caught.value)


def test_rows_that_no_verifier_can_judge_are_left_over() -> None:
    rows = [Sample("How many?", output="#### 4"), Sample("Why?", output="Because.")]
    tasks, others = tasks_of(rewards_of(["verifiers:math"]), rows, 0)
    assert (tasks, others) == ([rows[0]], [rows[1]])
    tasks, others = tasks_of(rewards_of(["verifiers:math,ifeval"]), rows, 0)
    assert len(tasks) == 2
    assert not others
    # A model judges every row; what a verifier asks for besides differs from row to row.
    asked = [Sample(f"Tell of day {i}.", output="It rained.") for i in range(12)]
    tasks, others = tasks_of(rewards_of(["verifiers:ifeval"]), asked, 0, models=True)
    assert (
        len({t.instruction.removeprefix(s.instruction) for t, s in zip(tasks, asked, strict=True)})
        > 4
    )
    assert tasks_of([], asked, 0, models=True) == (asked, [])
    tasks = [rows[0], *tasks[:1]]
    reward = VerifierReward(Math())
    assert reward.score(tasks, ["#### 4", "#### 4"]) == [1.0, None]
