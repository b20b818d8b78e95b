"""Errors that pass from one process to another."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from instructgen import errors
from instructgen.errors import InstructgenError

ERRORS: list[InstructgenError] = [
    errors.InputError("bad", path=Path("a.jsonl"), line=3, hint="Correct it."),
    errors.ConfigError("no option", "Use another."),
    errors.DamagedFileError("torn", path=Path("a"), line=2),
    errors.VersionError(Path("run.json"), 9, "Use version 9."),
    errors.StorageError("the disk is full", "Free some space."),
    errors.EngineDied("killed"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_stays_the_same_in_another_process(error: InstructgenError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
