"""Attacks on documents, definitions of tools, evidence, solutions and tests written by a model."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

import instructgen
from instructgen.distributed import cluster
from instructgen.documents import DocumentText
from instructgen.documents.split import Splitter
from instructgen.environments import Call, Tools, calls_of, read_turn
from instructgen.errors import ConfigError, InputError
from instructgen.filters.contamination import _FUNCTION
from instructgen.generation.answers import find_text
from instructgen.generation.methods.code import CodeTasks
from instructgen.generation.methods.document import _passages
from instructgen.generation.methods.solve import Solve
from instructgen.generation.prompts import template_for
from instructgen.schema.sample import Label, Sample
from instructgen.store import read_rows
from instructgen.verifiers.code import Code, code_blocks
from tests.conftest import ROOT, needs_sandbox
from tests.scripted import play

TEXT = "The library lends eight books for three weeks, and a member may renew each of them twice. "

WORDS = (
    ("hall", "garden", "cellar", "office"),
    ("tower", "kitchen", "stage", "studio"),
    ("archive", "cinema", "market", "school"),
    ("bridge", "harbor", "museum", "theater"),
)


def quick(function: Any, seconds: float = 20.0) -> Any:
    began = time.monotonic()
    result = function()
    assert time.monotonic() - began < seconds
    return result


# -- documents --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Intro.\n\n# a" + " " * 20_000 + "b\n\nBody\n",
        "# " + "#" * 200_000 + " x\n\nBody\n",
        "=" * 1_000_000,
        "a b c " + "=" * 1_000_000,
        "\n\n".join("x" * 30_000 for _ in range(300)),
    ],
    ids=["heading", "signs", "no words", "line", "long words"],
)
def test_a_text_is_divided_in_time_into_segments_of_limited_size(text: str) -> None:
    segments = quick(lambda: list(Splitter(240).segments(DocumentText(text))))
    assert segments
    assert max(s.end - s.start for s in segments) <= 100 * 240


def test_the_lines_around_a_passage_are_found_in_time() -> None:
    text = "a b " + "=" * 500_000
    shown = quick(lambda: _passages(template_for("en"), [text]))
    assert text in shown
    assert len(shown.splitlines()[-1]) == 500_001


def test_links_and_names_of_documents(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("The password of the library is on this line. " * 5)
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    for number, name in enumerate((b"\xff.txt", b"\xfe.txt", b"a\nb.txt", b"c\x1b[31m.txt")):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(
            f"Branch {number} of the library. {TEXT}"
            + " ".join(f"Its {word} opens at {number + 8}." for word in WORDS[number])
        )
    done = instructgen.import_data(
        folder, tmp_path / "out", format="documents", license="MIT", language="en"
    )
    rows = list(read_rows(done.out))
    assert done.facts.read == 5 and done.facts.used == 4
    names = {row["document"] for row in rows}
    assert names == {"%FF.txt", "%FE.txt", "a%0Ab.txt", "c%1B[31m.txt"}
    assert not any("password" in row["text"] for row in rows)
    assert [r["reason"] for r in read_rows(done.out, "rejected")] == ["link"]
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="not a file"):
        instructgen.import_data(
            tmp_path / "pipe.txt", tmp_path / "other", format="documents", license="MIT"
        )


@pytest.mark.parametrize(
    ("passage", "quote", "found"),
    [
        ("She was unable to pay the fee in cash.", "able to pay the fee in cash", False),
        ("The museum has 15 million objects there.", "5 million objects there", False),
        ("The museum has 1,5 million objects there.", "5 million objects there", False),
        ("The room holds 12 people or 125.", "The room holds 12", True),
        ("The room holds 125 people.", "The room holds 12", False),
        ("The room holds 12.5 people.", "The room holds 12", False),
        ("他们不能用现金付款。", "能用现金付款", True),
        ("She paid; he did not pay.", "he did not pay", True),
    ],
)
def test_a_quote_does_not_begin_within_a_word(passage: str, quote: str, found: bool) -> None:
    assert (find_text(quote, passage) is not None) is found


# -- definitions of tools ---------------------------------------------------------------------


def tool(**parameters: Any) -> list[dict[str, Any]]:
    return [{"name": "find", "parameters": parameters}]


def test_a_schema_fetches_nothing() -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(2)

        def listen() -> None:
            try:
                connection, _ = server.accept()
                asked.append(connection.recv(100))
                connection.close()
            except TimeoutError:
                return

        thread = threading.Thread(target=listen)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/s"
        hidden = {"foo": {"properties": {"b": {"$id": address, "$ref": "#/$defs/z"}}}}
        schema = {"properties": {"a": {"$ref": "#/x-c/foo"}}, "x-c": hidden, "$defs": {"z": {}}}
        with pytest.raises(ValueError, match="not supported"):
            Tools(tool(**schema))
        thread.join()
    assert asked == []


SCHEMAS: dict[str, dict[str, Any]] = {
    "slow pattern": {"properties": {"q": {"pattern": "^(a+)+$"}}},
    "many references": {
        "allOf": [{"$ref": "#/$defs/d0"}],
        "$defs": {
            f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} if i < 30 else {}
            for i in range(31)
        },
    },
    "references with the data": {
        "properties": {"q": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}},
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_arguments_are_checked_in_time(name: str) -> None:
    tools, deep = Tools(tool(**SCHEMAS[name])), {}
    for _ in range(60):
        deep = {"q": deep}
    arguments = {"q": "a" * 40 + "!"} if name == "slow pattern" else deep
    fault = quick(lambda: tools.fault(Call("find", arguments)), 40.0)
    assert fault is not None and fault[0] == "invalid_arguments"


@pytest.mark.parametrize(
    "parameters",
    [
        {"minProperties": 1, "$ref": "#/minProperties/x"},
        {"patternProperties": {"^(a+)+$": {}}},
        {"properties": {"q": {"pattern": "("}}},
        {"$id": "file:///etc/passwd"},
    ],
)
def test_schemas_that_are_not_supported(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"find|support|pattern"):
        Tools(tool(**parameters))


def test_calls_that_are_nested_too_deeply_cannot_be_read() -> None:
    for depth in (300, 1000):
        arguments = orjson.loads("[" * depth + "]" * depth)
        assert calls_of([{"name": "find", "arguments": {"q": arguments}}]) is None


@pytest.mark.parametrize(
    "text",
    [
        'I will call: {"calls": [{"name": "find", "arguments": {}}]}',
        '[{"name": "find", "arguments": {}}]',
        '{"name": "find", "arguments": {}}',
    ],
)
def test_a_call_in_another_form_is_no_answer(text: str) -> None:
    assert read_turn(text)[0] is None


def test_a_call_in_a_block_is_a_call() -> None:
    calls, _ = read_turn('```json\n{"calls": [{"name": "find", "arguments": {}}]}\n```')
    assert calls == [Call("find", {})]
    assert quick(lambda: read_turn("<tool_call>x" + " " * 200_000 + "y"))[0] is None


@pytest.mark.parametrize("name", ["call", "state", "close", "__init__", "missing"])
def test_a_tool_is_a_method_of_the_environment(tmp_path: Path, name: str) -> None:
    desk = ROOT / "examples" / "desk"
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"name": name}]))
    with pytest.raises(ConfigError, match=name):
        instructgen.generate(
            desk / "tasks.jsonl", target=1, out=tmp_path / "run", engine="echo",
            method="tool_dialogue", tools=tools, environment=desk / "desk.py",
        )  # fmt: skip


# -- solutions and tests ----------------------------------------------------------------------

REPLACED = {
    "abs": ("def abs(x): return 0\ndef f(x): return 0.0", "assert abs(f(2) - 4) < 1e-9"),
    "all": ("def all(x): return True\ndef f(x): return 0", "assert all([f(2) == 4])"),
    "range": ("def range(*a): return [0]\ndef f(x): return 0", "for i in range(9): assert f(i) == i"),
    "sorted": ("def sorted(x): return []\ndef f(x): return x", "assert sorted(f([2, 1])) == [1]"),
    "isinstance": ("def isinstance(*a): return True\ndef f(x): return 1",
                   "assert isinstance(f(1), list)"),
    "a module": ("class math: isclose = staticmethod(lambda *a: True)\ndef f(x): return 1",
                 "assert math.isclose(f(2), 4.0)"),
}  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize("name", REPLACED)
def test_an_answer_cannot_replace_what_the_tests_use_of_python(name: str) -> None:
    program, tests = REPLACED[name]
    counts = Code().run(program, tests)
    assert counts["loaded"] and counts["failed"]


@needs_sandbox
def test_a_task_may_be_about_a_name_of_python() -> None:
    right = "```python\ndef max(x):\n    return x[0] if x[0] > x[1] else x[1]\n```"
    wrong = "```python\ndef max(x):\n    return x[0]\n```"
    task = Sample("Write max.", output=right, labels=(Label("test", "assert max([1, 2]) == 2"),))
    assert Code().check(task, right) == 1.0
    assert Code().check(task, wrong) < 1.0


@needs_sandbox
def test_functions_that_are_tests_are_called_once() -> None:
    tests = "def test_a():\n    assert f(1) == 1\n    assert f(2) == 3\n"
    for text in (tests, f"{tests}test_a()\n"):
        counts = Code().run("def f(x): return x", text)
        assert (counts["passed"], counts["failed"]) == (1, 1)


def test_blocks_of_other_languages_are_left_out() -> None:
    python = "def f():\n    return 1\n"
    text = f"```bash\npip install x\n```\nThe solution:\n```python\n{python}```\n```json\n{{}}\n```"
    assert code_blocks(text) == [python]
    assert code_blocks(f"```Python3\n{python}```\n```\n{python}```") == [python, python]


@pytest.mark.parametrize(
    "tests",
    [
        "import os\nassert f(1) == 1\nassert f(2) == 2",
        "from sys import exit\nassert f(1) == 1\nassert f(2) == 2",
        "__passed__()\nassert f(1) == 1\nassert f(2) == 2",
        "open(5, 'w').write('{}')\nassert f(1) == 1\nassert f(2) == 2",
    ],
)
def test_tests_that_could_write_the_verdict_are_rejected(tests: str) -> None:
    seed = Sample('def one(x):\n    """Return x."""\n    return x\n', license="MIT", language="en")
    texts = {
        "concepts": "numbers",
        "task": "Write f(x), which returns x.",
        "solutions": f"```python\ndef f(x):\n    return x\n```\n```python\n{tests}\n```",
    }
    done = play(CodeTasks(attempts=1), [seed], lambda r: texts[r.stage])
    assert done.reasons() == ["unsafe_tests"]


@pytest.mark.parametrize(
    ("text", "steps", "answer"),
    [
        ("Step one.\n\n**Answer:** 18", "Step one.", "18"),
        ("Step one.\n**Answer: 18**", "Step one.", "18"),
        ("Step one.\nFinal Answer: 18", "Step one.", "18"),
        ("Step one.\nAnswer: 18\n\nThe Answer: holds.", "Step one.", "18\n\nThe Answer: holds."),
    ],
)
def test_solutions_are_divided_at_the_line_with_the_answer(
    text: str, steps: str, answer: str
) -> None:
    seed = Sample("How many?", output="18", language="en")
    (row,) = play(Solve(attempts=1), [seed], lambda r: text).rows
    assert (row.reasoning_content, row.output) == (steps, answer)


def test_functions_of_a_benchmark_are_found_in_any_form() -> None:
    text = "async def one(x): ...\n  def two (x): ...\nthree = lambda x: x\nfour = 4\n"
    assert _FUNCTION.findall(text) == ["one", "two", "three"]


@pytest.mark.parametrize("address", ["..:6379", "a" * 64 + ":1", "h:" + "1" * 5000, "[::1]:1"])
def test_addresses_of_any_form_are_one_message(address: str) -> None:
    with pytest.raises(ConfigError):
        cluster._check_address(address)
