"""The method code: snippets, tasks, and solutions that are executed with their tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from instructgen.engines import Completion
from instructgen.errors import InputError
from instructgen.generation.methods.code import CodeTasks, snippet_fault
from instructgen.generation.seed_pool import load_seeds, seed_format
from instructgen.schema.sample import Sample
from tests.conftest import ROOT, needs_sandbox
from tests.scripted import Played, play

SNIPPET = Sample(
    'def area(w, h):\n    """Return the area."""\n    return w * h\n', language="en", license="MIT"
)
TASK = "Write add(a: int, b: int) -> int, which returns the sum. For example, add(1, 2) is 3."
GOOD = "def add(a, b):\n    return a + b"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\nassert add(0, 0) == 0"


def reply(program: str, tests: str = TESTS) -> str:
    return f"Here it is.\n```python\n{program}\n```\nAnd its tests:\n```python\n{tests}\n```"


def made(*solutions: str | Completion, **options: object) -> Played:
    """Run the method with these solutions; the sandbox is real."""
    said = iter(["arithmetic, functions", TASK, *solutions])
    method = CodeTasks(attempts=len(solutions), **options)  # type: ignore[arg-type]
    return play(method, [SNIPPET], lambda r: next(said))


@needs_sandbox
def test_a_tested_solution_becomes_a_row() -> None:
    done = made(reply("def add(a, b):\n    return a - b"), reply(GOOD))
    (row,) = done.rows
    assert row.instruction == TASK
    assert row.output == f"```python\n{GOOD}\n```"
    labels = {x.name: x.value for x in row.labels}
    assert labels["test"] == TESTS
    assert labels["concepts"] == "arithmetic, functions"
    assert labels["difficulty"] in ("easy", "medium", "hard")
    assert row.score("pass_rate").value == 0.5  # type: ignore[union-attr]
    assert row.origin.parents == (SNIPPET.id,)
    assert (row.license, row.origin.request) == ("MIT", 3)
    # The same, by an independent script.
    code = row.output.removeprefix("```python\n").removesuffix("\n```")
    subprocess.run([sys.executable, "-c", f"{code}\n{labels['test']}"], check=True)


ALWAYS = "class E:\n    def __eq__(self, other): return True\ndef add(a, b): return E()"
CHEATS = {
    "no tests": (f"```python\n{GOOD}\n```", "no_tests"),
    "empty tests": (reply(GOOD, "pass"), "no_tests"),
    "one test": (reply(GOOD, "assert add(1, 2) == 3"), "no_tests"),
    "tests are prose": (reply(GOOD, "The sum of 1 and 2 is 3."), "no_tests"),
    "true": (reply(GOOD, "assert True\nassert 1 == 1"), "tests_prove_nothing"),
    "callable": (reply(GOOD, "assert callable(add)\nassert add"), "tests_fail"),
    "no exception": (
        reply(GOOD, "add(1, 2)\nassert add(1, 2) != 4\nassert add(1, 1) is not False"),
        "tests_prove_nothing",
    ),
    "only errors on the stub": (
        reply(GOOD, "assert add(1, 2) + 0\nassert add(2, 2) + 0"),
        "tests_prove_nothing",
    ),
    "compares with itself": (
        reply(GOOD, "assert add(1, 2) == add(1, 2)\nassert add(1, 1) == add(1, 1)"),
        "tests_prove_nothing",
    ),
    "exit": (reply(f"import sys\n{GOOD}\nsys.exit(0)"), "tests_fail"),
    "exit at once": (reply(f"import os\n{GOOD}\nos._exit(0)"), "tests_fail"),
    "exit when called": (reply("import os\ndef add(a, b):\n    os._exit(0)"), "tests_fail"),
    "equal to all": (reply(ALWAYS), "tests_fail"),
    "reads input": (reply("def add(a, b):\n    return int(input())"), "tests_fail"),
    "echoes input": (reply(f"{GOOD.replace('a + b', '0')}\nprint(input(), end='')"), "tests_fail"),
    "raises": (reply("def add(a, b):\n    raise SystemExit(0)"), "tests_fail"),
    "never ends": (reply("def add(a, b):\n    while True: pass"), "tests_fail"),
    "wrong": (reply("def add(a, b):\n    return 3"), "tests_fail"),
    "defines another function": (reply("def plus(a, b):\n    return a + b"), "tests_fail"),
    "tests skip themselves": (
        reply(GOOD, "if False:\n    assert add(1, 2) == 3\n    assert add(2, 2) == 4"),
        "tests_fail",
    ),
    "tests exit": (
        reply(GOOD, "raise SystemExit\nassert add(1, 2) == 3\nassert add(1, 1) == 2"),
        "tests_fail",
    ),
    "tests in a function that is called by no one": (
        reply(
            GOOD.replace("+", "-"),
            f"assert add(1, 0)\nassert add(2, 0) == 2\ndef test_add():\n    {TESTS.splitlines()[0]}\n"
            "if __name__ == '__main__':\n    test_add()",
        ),
        "tests_fail",
    ),
    "tests in a class": (
        reply(
            GOOD.replace("+", "-"),
            f"assert add(1, 0)\nassert add(2, 0) == 2\nclass TestAdd:\n    def test_add(self):\n"
            f"        {TESTS.splitlines()[0]}",
        ),
        "tests_fail",
    ),
    "a function of Python replaced": (
        reply(f"def sum(x):\n    return 0\n{GOOD}", f"assert sum([1, 2]) == 3\n{TESTS}"),
        "replaced_name",
    ),
    "no function": (reply("add = 3"), "no_function"),
    "broken": (reply("def add(a, b) return a"), "no_function"),
    "JavaScript": ("```js\nfunction add(a, b) { return a + b }\n```", "no_tests"),
    "nothing": ("", "no_tests"),
    "cut": (Completion(reply(GOOD), "length"), "cut_by_length"),
}


@needs_sandbox
@pytest.mark.parametrize("name", CHEATS)
def test_solutions_that_prove_nothing_are_rejected(name: str) -> None:
    text, reason = CHEATS[name]
    done = made(text)
    assert not done.rows
    assert done.reasons() == [reason]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (SNIPPET.instruction, None),
        ("def f(x):\n    return x", "no_docstring"),
        ('def f(x):\n    """Do it."""\n    print(x)', "no_return"),
        ('import os\ndef f(x):\n    """Do it."""\n    return x', "system_module"),
        ('def f(x):\n    """Do it."""  # TODO\n    return x', "unfinished"),
        ("function f(x) { return x }", "not_python"),
        (SNIPPET.instruction + "\n" * 200, "too_long"),
    ],
)
def test_snippets_follow_the_rules(code: str, fault: str | None) -> None:
    assert snippet_fault(code) == fault
    assert CodeTasks().fits(Sample(code)) == (fault is None)


def test_functions_of_a_folder_are_snippets(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.py").write_text(f"import math\n\n{SNIPPET.instruction}\n\nX = 1\n")
    (tmp_path / "more" / "b.py").write_text(
        "def one():\n    return 1\n\n\ndef two():\n    return 2\n"
    )
    seeds, bad = load_seeds([tmp_path], license="MIT", own_format=seed_format("snippets"))
    assert not bad
    assert [s.instruction.split("(")[0] for s in seeds] == ["def area", "def one", "def two"]
    assert {s.license for s in seeds} == {"MIT"}
    shipped, _ = load_seeds([ROOT / "seeds" / "snippets.jsonl"], own_format=seed_format("snippets"))
    assert sum(CodeTasks().fits(s) for s in shipped) == 20


@pytest.mark.parametrize(
    ("name", "text", "license"),
    [
        ("a.js", "function f() {}", "MIT"),
        ("a.py", "def f(:", "MIT"),
        ("a.py", SNIPPET.instruction, ""),
        ("empty", None, "MIT"),
    ],
)
def test_other_languages_and_unlicensed_code_are_refused(
    tmp_path: Path, name: str, text: str | None, license: str
) -> None:
    path = tmp_path / name
    path.mkdir() if text is None else path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_seeds([path], license=license, own_format=seed_format("snippets"))
    assert caught.value.path == path
