"""Programming tasks with solutions that pass their tests (self-OSS-instruct, arXiv 2402.19173).

A snippet of code inspires concepts, these a task, and the task a solution with tests. Solution and
tests are executed in a sandbox. The tests must also fail on a function that does nothing, because
tests without an assertion pass on anything.
"""

from __future__ import annotations

import ast
import builtins
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field

from instructgen.engines import Completion, Engine, Request, Sampling
from instructgen.generation.executing import CodeExecutor
from instructgen.generation.methods import (
    Accept,
    ChatMethod,
    Continue,
    Draft,
    Outcome,
    PromptSetup,
    Propose,
    SamplingOptions,
    Stage,
    Start,
    completion_fault,
    draft_of_seed,
)
from instructgen.generation.prompts import one_line
from instructgen.generation.seed_pool import Pool
from instructgen.schema.sample import Label, Sample, Score
from instructgen.verifiers.code import code_blocks, defined_names

CONCEPTS, TASK, SOLUTIONS, RUN = "concepts", "task", "solutions", "run"
Difficulty = Literal["easy", "medium", "hard"]
_MAX_CONCEPTS = 400


class CodeTasks(ChatMethod):
    """Writes programming tasks from snippets of code, with solutions that pass their tests."""

    name = "code"
    stages = (
        Stage(CONCEPTS, 0.9),
        Stage(TASK, 0.8),
        Stage(SOLUTIONS, 0.8),
        Stage(RUN, 0.4, role="executor"),
    )
    starts_from: ClassVar[Start] = "snippets"
    finite: ClassVar[bool] = True
    recipe: ClassVar[str] = "grounded"

    attempts: int = Field(2, ge=1, le=64, description="Number of solutions of each task.")
    difficulties: tuple[Difficulty, ...] = Field(
        ("easy", "medium", "hard"), min_length=1, description="Difficulties that are drawn."
    )
    min_tests: int = Field(2, ge=1, description="Minimum number of assertions.")
    tasks: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, top_p=0.95, max_tokens=400),
        description="Sampling parameters for concepts and tasks.",
    )
    solutions: SamplingOptions = Field(
        SamplingOptions(temperature=0.7, top_p=0.95, max_tokens=1536),
        description="Sampling parameters for solutions with their tests.",
    )

    def fits(self, seed: Sample) -> bool:
        """Return whether a snippet is a function worth imitating."""
        return snippet_fault(seed.instruction) is None

    def executor(self) -> Engine:
        """Return the engine that runs programs in the sandbox."""
        return CodeExecutor()

    def start(self, pool: Pool, rng: random.Random, number: int, form: PromptSetup) -> Draft:
        """Take the next snippet, and draw a difficulty."""
        draft = draft_of_seed(pool, number, CONCEPTS)
        return replace(draft, state={"difficulty": rng.choice(self.difficulties)})

    def samples(self, draft: Draft, form: PromptSetup) -> int:
        """Return the number of solutions, which are executed in one request."""
        return self.attempts if draft.stage == SOLUTIONS else 1

    def request(self, pool: Pool, draft: Draft, form: PromptSetup) -> Request:
        """Return the request for concepts, a task or a solution, or for the execution of all."""
        sample, state = draft.sample, draft.state
        template = self.template("en")
        if draft.stage == RUN:
            return Request(orjson.dumps(state["programs"]).decode(), Sampling(), stage=RUN)
        if draft.stage == CONCEPTS:
            snippet = pool.at(draft.parents[0]).instruction
            prompt = template.prompt("code", "concepts", snippet=snippet)
            return Request(prompt, self.tasks.sampling(), stage=CONCEPTS)
        if draft.stage == TASK:
            values = {"concepts": state["concepts"], "difficulty": state["difficulty"]}
            prompt = template.prompt("code", "task", **values)
            return Request(prompt, self.tasks.sampling(), stage=TASK)
        prompt = template.prompt("code", "solution", task=sample.instruction)
        return Request(prompt, self.solutions.sampling(), stage=SOLUTIONS)

    def read(self, draft: Draft, completion: Completion, form: PromptSetup) -> list[Outcome]:
        """See `read_all`."""
        return self.read_all(draft, [completion], form)

    def read_all(
        self, draft: Draft, completions: Sequence[Completion], form: PromptSetup
    ) -> list[Outcome]:
        """Return the draft with its concepts, task or solutions, or the row with a tested one."""
        if draft.stage == SOLUTIONS:
            return [self._solved(draft, completions)]
        sample, completion = draft.sample, completions[0]
        if (failed := completion_fault(completion)) is not None:
            return [self.reject(sample, *failed)]
        text = completion.text.strip()
        if draft.stage == RUN:
            return [self._tested(draft, orjson.loads(text))]
        if draft.stage == CONCEPTS:
            concepts = one_line(text)[:_MAX_CONCEPTS]
            if not concepts:
                return [self.reject(sample, "no_concepts", "the completion is empty")]
            state = {**draft.state, "concepts": concepts}
            return [Continue(replace(draft, stage=TASK, state=state))]
        if not text:
            return [self.reject(sample, "empty_task", "the task is empty")]
        sample = replace(sample, instruction=text)
        sample = sample.with_label(Label("concepts", draft.state["concepts"]))
        sample = sample.with_label(Label("difficulty", draft.state["difficulty"]))
        return [Propose(replace(draft, stage=SOLUTIONS, sample=sample))]

    def _solved(self, draft: Draft, completions: Sequence[Completion]) -> Outcome:
        """Return the draft with the solutions that have code and tests."""
        programs: list[dict[str, str]] = []
        places: list[int] = []
        faults: list[tuple[str, str]] = []
        for place, completion in enumerate(completions):
            found = self._program(completion)
            if isinstance(found, tuple):
                faults.append(found)
            else:
                programs.append(found)
                places.append(place)
        if not programs:
            return self.reject(draft.sample, *faults[0])
        state = {
            **draft.state,
            "programs": programs,
            "places": places,
            "thoughts": [completions[i].reasoning for i in places],
            "asked": len(completions),
        }
        return Continue(replace(draft, stage=RUN, state=state))

    def _program(self, completion: Completion) -> dict[str, str] | tuple[str, str]:
        """Return a program with its tests and its stub, or the reason for a rejection."""
        if (fault := completion_fault(completion)) is not None:
            return fault
        blocks = code_blocks(completion.text)
        if len(blocks) < 2:
            return "no_tests", "the completion does not have a block of code and one of tests"
        program, tests = blocks[:2]
        stub = _stub(program)
        if stub is None:
            return "no_function", "the code defines no function"
        fault = self._tests_fault(program, tests)
        return fault or {"program": program, "tests": tests, "stub": stub}

    def _tests_fault(self, program: str, tests: str) -> tuple[str, str] | None:
        try:
            tree = ast.parse(tests)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return "no_tests", "the tests are not Python code"
        if (other := _unsafe_name(tree)) is not None:
            return "unsafe_tests", f"the tests use {other}"
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if replaced := sorted(used & _OF_PYTHON & set(defined_names(program))):
            # The tests would check Python's, and a reader of the row would expect the program's.
            return "replaced_name", f"the code replaces Python's {replaced[0]}, which the tests use"
        count = sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
        if count < self.min_tests:
            return "no_tests", f"the tests have {count} assertions"
        return None

    def _tested(self, draft: Draft, verdicts: list[dict[str, dict[str, int]]]) -> Outcome:
        sample, state = draft.sample, draft.state
        passing = [i for i, v in enumerate(verdicts) if _passes(v["program"], self.min_tests)]
        sound = [i for i in passing if verdicts[i]["stub"]["false"]]
        rate = len(sound) / state["asked"]
        sample = sample.with_score(Score("pass_rate", round(rate, 4)))
        if not passing:
            return self.reject(sample, "tests_fail", "no solution passes its tests", 0.0)
        if not sound:
            detail = "no assertion is false for functions that return None"
            return self.reject(sample, "tests_prove_nothing", detail)
        best = sound[0]
        program = state["programs"][best]
        sample = replace(
            sample,
            output=f"```python\n{program['program'].strip()}\n```",
            reasoning_content=state["thoughts"][best],
        )
        sample = sample.with_label(Label("test", program["tests"].strip()))
        return Accept(sample, of=state["places"][best])


# The process that runs the tests writes the verdict. So these are the only modules for tests.
_FOR_TESTS = {
    *("math", "cmath", "re", "string", "itertools", "collections", "functools", "operator"),
    *("typing", "decimal", "fractions", "datetime", "random", "json", "copy", "statistics"),
    *("heapq", "bisect", "dataclasses", "enum", "textwrap"),
}
_OF_PYTHON = {*dir(builtins), *sys.stdlib_module_names}
_NOT_FOR_TESTS = {"open", "exec", "eval", "compile", "globals", "vars", "exit", "quit", "getattr"}


def _unsafe_name(tests: ast.Module) -> str | None:
    """Return a module or name that tests do not need, and that could change the verdict."""
    for node in ast.walk(tests):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.Name) and node.id != "__name__":
            hidden = node.id.startswith("__") or node.id in _NOT_FOR_TESTS
            names = [node.id] if hidden else []
        for name in names:
            if name not in _FOR_TESTS:
                return name or "a relative import"
    return None


def _passes(counts: dict[str, int], least: int) -> bool:
    return bool(counts["loaded"]) and not counts["failed"] and counts["passed"] >= least


_SYSTEM = {"os", "sys", "subprocess", "socket", "shutil", "ctypes", "multiprocessing", "threading"}
_MAX_LINES = 150


def snippet_fault(text: str) -> str | None:
    """Return why a snippet is not used, or None (the rules of StarCoder2-Instruct).

    It must be Python code with a function that has a docstring and returns something, of at most
    150 lines, without TODO or FIXME and without modules of the system.
    """
    if len(text.splitlines()) > _MAX_LINES:
        return "too_long"
    if "TODO" in text or "FIXME" in text:
        return "unfinished"
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "not_python"
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    if imported & _SYSTEM:
        return "system_module"
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    if not any(ast.get_docstring(f) for f in functions):
        return "no_docstring"
    if not any(isinstance(n, ast.Return) and n.value for f in functions for n in ast.walk(f)):
        return "no_return"
    return None


class _Nothing(ast.NodeTransformer):
    """Replaces the body of each function by one that returns None."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.body = [ast.Return(ast.Constant(None))]
        return node


def _stub(program: str) -> str | None:
    """Return the program with functions that return None; None if it has no function."""
    try:
        tree = ast.parse(program)
        if not any(isinstance(node, ast.FunctionDef) for node in ast.walk(tree)):
            return None
        return ast.unparse(ast.fix_missing_locations(_Nothing().visit(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
