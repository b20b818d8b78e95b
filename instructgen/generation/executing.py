"""The engines of the role ``executor``, which run programs instead of a model.

What they compute may depend on the machine or need a sandbox. So it is requested and recorded in
the journal like a completion, and neither a resumed run nor `rebuild` computes it again.
"""

from __future__ import annotations

import os
import random
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from pydantic import Field

from instructgen.engines import Completion, QueueEngine, Request
from instructgen.environments import Call, executed
from instructgen.errors import EngineError, first_line
from instructgen.plugins import find
from instructgen.schema.sample import Sample
from instructgen.verifiers.code import Code


class Executor(QueueEngine):
    """Base class of engines that answer each request with a JSON value."""

    def has_chat_template(self) -> bool:
        """Return False: the requests are not for a model."""
        return False

    def at_once(self) -> int:
        """Return the number of requests that run at the same time: one per core."""
        return os.cpu_count() or 1

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Return the value of each request as JSON."""
        with ThreadPoolExecutor(len(requests)) as pool:
            values = list(pool.map(self.value, requests))
        return [Completion(orjson.dumps(value).decode(), "stop") for value in values]

    @abstractmethod
    def value(self, request: Request) -> Any:
        """Return the value that answers a request."""


class VerifierExecutor(Executor):
    """Checks answers to a row with a verifier.

    The prompt of a request is a JSON list of answers. The value has a list of ``scores`` if the row
    can be checked. Otherwise, the answers are compared with each other: ``same`` has, for each
    answer, the position of the first one that has the same result, or -1 if it has no result.
    """

    name = "verifier"

    verifier: str = Field(description="Name of the verifier.")

    def start(self) -> None:
        """Check that the verifier can work on this machine."""
        find("verifiers", self.verifier)().require()

    def value(self, request: Request) -> dict[str, list[float]] | dict[str, list[int]]:
        """Return the scores of the answers, or which of them are the same."""
        verifier = find("verifiers", self.verifier)()
        row, answers = request.row, orjson.loads(str(request.prompt))
        if row is None:
            raise ValueError("the request has no row")
        task = verifier.task(row, random.Random(0))
        if task is not None:
            return {"scores": [verifier.check(task, answer) for answer in answers]}
        tasks: dict[int, Sample] = {}
        same: list[int] = []
        for place, answer in enumerate(answers):
            equal = (i for i, task in tasks.items() if verifier.check(task, answer) == 1.0)
            first = next(equal, None)
            if first is None:
                task = verifier.task(row.with_answer(answer), random.Random(0))
                first = -1 if task is None else place
                tasks |= {} if task is None else {place: task}
            same.append(first)
        return {"same": same}


class EnvironmentExecutor(Executor):
    """Executes calls of tools in an environment; see `instructgen.environments`.

    The prompt of a request is a JSON object: the ``calls`` since the beginning of the draft, the
    results of the earlier ones, ``known``, and whether they are ``by_model``. All are executed in a
    new environment. The value has the ``results`` of the others, and the digests of the state
    ``before`` and ``after``; or the exception of a tool, ``failed``.
    """

    name = "environment"

    environment: str = Field(description="Name of the environment.")

    def at_once(self) -> int:
        """Return 1: threads would only take turns."""
        return 1

    def start(self) -> None:
        """Check that the environment is known."""
        find("environments", self.environment)

    def value(self, request: Request) -> dict[str, Any]:
        """Return the results of the calls, and the digests of the state.

        Raises:
            EngineError: the calls of a seed fail with an exception other than `ToolError`, or the
                results of earlier calls have changed.
        """
        asked = orjson.loads(str(request.prompt))
        calls = [Call(**call) for call in asked["calls"]]
        try:
            kind = find("environments", self.environment)
            results, before, after = executed(kind, calls)
        except (Exception, SystemExit) as error:
            failed = f"{type(error).__name__}: {first_line(error)}"
            if asked["by_model"]:
                # One row is lost, and not the run: a model may find an error that nobody knows.
                return {"failed": failed}
            raise EngineError(
                f"the environment {self.environment} failed ({failed}) for a task of the seeds.",
                "Correct it, so that its tools raise ToolError for what the assistant does wrong, "
                "and start a new run.",
            ) from error
        known = asked["known"]
        if results[: len(known)] != known:
            raise EngineError(
                f"the environment {self.environment} is not deterministic: the same calls gave "
                "other results.",
                "Let it use no clock, random numbers or other state outside of the object, and "
                "start a new run.",
            )
        return {"results": results[len(known) :], "before": before, "after": after}


class CodeExecutor(Executor):
    """Runs programs with their tests in the sandbox, and the same tests with a stub.

    The prompt of a request is a JSON list of objects with ``program``, ``tests`` and ``stub``. The
    value is a list of the counts of `instructgen.verifiers.code.Code.run` for each of the two.
    """

    name = "code"

    def start(self) -> None:
        """Check that this machine has a sandbox."""
        Code().require()

    def value(self, request: Request) -> list[dict[str, dict[str, int]]]:
        """Return the counts of passed and failed tests."""
        verifier = Code()
        return [
            {key: verifier.run(each[key], each["tests"]) for key in ("program", "stub")}
            for each in orjson.loads(str(request.prompt))
        ]
