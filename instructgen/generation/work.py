"""Defines what a sequencer drives: something that chooses requests and takes in completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from instructgen.engines import Completion, Request, Role


class Stop(NamedTuple):
    """Why a run ended: a short code, and a sentence."""

    reason: str
    detail: str


class Choice(NamedTuple):
    """What to ask next: the draft and its stage, and who answers."""

    draft: int
    stage: str
    role: Role = "writer"


class Work(Protocol):
    """The requests of a generation run, or a list of requests."""

    stopped: Stop | None

    def choose(self, free: Callable[[Role], bool]) -> Choice | None:
        """Return what to ask next, or None if nothing is to be asked now."""

    def issue(self, number: int, choice: Choice) -> Request:
        """Return the request for a choice. Raise LookupError if the choice is not possible."""

    def commit(self, number: int, completion: Completion) -> None:
        """Take in the completion of a request."""


class RequestList:
    """A list of requests that do not depend on each other, which are asked in order.

    ``completions`` has the completion of each request, or None before it is answered.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.completions: list[Completion | None] = [None] * len(requests)
        self.stopped: Stop | None = None
        self._issued = self._done = 0
        self._stop_if_done()

    def choose(self, free: Callable[[Role], bool]) -> Choice | None:
        """Return the next request of the list."""
        if self._issued == len(self.requests):
            return None
        request = self.requests[self._issued]
        return Choice(self._issued, request.stage, request.role) if free(request.role) else None

    def issue(self, number: int, choice: Choice) -> Request:
        """Return the request for a choice. Raise LookupError if it is not the next of the list."""
        if number != choice.draft or number != self._issued:
            raise LookupError(f"request {number}")
        self._issued += 1
        return self.requests[number]

    def commit(self, number: int, completion: Completion) -> None:
        """Store the completion of a request."""
        self.completions[number] = completion
        self._done += 1
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self._done == len(self.requests):
            self.stopped = Stop("complete", f"{self._done:,} requests were answered")
