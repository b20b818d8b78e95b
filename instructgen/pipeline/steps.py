"""Runs the steps that have to be run, one process each, and notes what came of them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructgen.errors import InstructgenError, RunError
from instructgen.pipeline.plan import (
    STATE,
    Planned,
    State,
    asked,
    decide,
    output_digest,
    read_state,
    state_bytes,
)
from instructgen.pipeline.recipe import load_steps, recipe_path
from instructgen.pipeline.step import Step
from instructgen.schema.progress import Progress, Watch
from instructgen.store import locked, storage, write_atomic

# A killed run's step is killed by the kernel, and may hold its folder a moment longer.
_PATIENCE_S = 20.0
# What took a model's time is kept when it is made anew; the rest is soon made again.
_PRECIOUS = ("generate", "prefer", "train", "ablate")
# generate has said why it ended before its target, and published what there is.
_ENDED_EARLY = 3
_REFUSED = 2


class StepError(InstructgenError, RuntimeError):
    """A step's command failed; its own message stands above."""

    def __init__(self, step: Step, code: int) -> None:
        said = f"exit code {code}" if code > 0 else f"signal {-code}"
        super().__init__(
            f"The step {step.name} stopped ({said}).",
            "Mend that, and give the same command."
            if code == _REFUSED
            else "The same command goes on from there.",
        )
        self.exit_code = code if code > 0 else 1


@dataclass(slots=True)
class Ran:
    """What a recipe came to: each step with why it was run or skipped, and its seconds."""

    out: Path
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ended_early(self) -> list[str]:
        """The steps that ended before their target."""
        return [step["name"] for step in self.steps if step.get("ended_early")]


def steps_of(
    recipe: str,
    out: str | Path | None,
    inputs: Mapping[str, str],
    *,
    limit: bool,
) -> tuple[Path, list[Step]]:
    """A recipe's folder, ``runs/NAME`` if none is given, and its steps; see `load_steps`."""
    folder = Path("runs") / recipe_path(recipe).stem if out is None else Path(out)
    return folder, load_steps(recipe, folder, inputs, limit=limit)


def run(
    recipe: str,
    out: str | Path | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    limit: bool = False,
    quiet: bool = False,
    watch: Watch | None = None,
) -> Ran:
    """Run a recipe's steps, or what is left of them.

    Args:
        recipe: a TOML file, or the name of a shipped one.
        out: the folder for all that is made; ``runs/NAME`` without it.
        inputs: the recipe's inputs that are elsewhere than it says, by name.
        limit: whether to run its small form.
        quiet: whether the steps say nothing but what went wrong.
        watch: called with each step: why it runs or not and, if it does, its command line.

    Raises:
        ConfigError: the recipe is bad; nothing was run.
        RunError: the folder is in use, or its state is damaged.
        StorageError: the disk refuses.
        StepError: a step failed.
    """
    folder, steps = steps_of(recipe, out, inputs or {}, limit=limit)
    ran = Ran(folder)
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait_s=_PATIENCE_S) as lock:
            state = read_state(folder)
            for number, step in enumerate(steps, start=1):
                planned = decide(step, state)
                if watch is not None:
                    watch(_told(planned, number, len(steps)))
                record: dict[str, Any] = {
                    "name": step.name,
                    "command": step.command,
                    "why": planned.why,
                }
                if planned.runs:
                    record |= _run_step(planned, folder, state, lock, quiet)
                record["ended_early"] = bool(state[step.name].get("ended_early"))
                ran.steps.append({**record, "ran": planned.runs, "out": str(step.out)})
    return ran


def _told(planned: Planned, number: int, count: int) -> Progress:
    line = (shlex.join(["instructgen", *planned.step.argv]),) if planned.runs else ()
    return Progress(planned.step.name, number, count, "steps", notes=(planned.why, *line))


def _run_step(
    planned: Planned, folder: Path, state: State, lock: int, quiet: bool
) -> dict[str, Any]:
    step = planned.step
    if step.name not in state and step.out.exists():
        raise RunError(
            f"{step.out} is there already, and no step of this recipe made it.",
            "Move it away, or give another --out.",
        )
    begun = step.name in state and step.out.is_file()
    if planned.anew or begun:
        # A file that was written and not noted before a kill is ours, and refused else.
        _clear(step, folder)
    for path, text in step.files.items():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, [text.encode()])
    before = state.get(step.name, {})
    spent = 0.0 if planned.anew else before.get("seconds", 0.0)
    entry = {"asked": asked(step), "output": None, "seconds": spent}
    state[step.name] = entry
    write_atomic(folder / STATE, [state_bytes(state)])
    began = time.monotonic()
    code = _command([*step.argv, *(["--quiet"] if quiet else [])], lock, quiet)
    entry["seconds"] = round(spent + time.monotonic() - began, 1)
    if code not in (0, _ENDED_EARLY):
        if code == _REFUSED and before and not planned.anew:
            # Nothing was done, so that what was there before is what is there.
            state[step.name] = before
        write_atomic(folder / STATE, [state_bytes(state)])
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        raise StepError(step, code)
    entry["output"] = output_digest(step.out)
    if entry["output"] is None:
        raise RuntimeError(f"{step.name} ended well and left nothing whole in {step.out}")
    entry["ended_early"] = code == _ENDED_EARLY
    write_atomic(folder / STATE, [state_bytes(state)])
    return {"seconds": entry["seconds"]}


def _clear(step: Step, folder: Path) -> None:
    """Make room for a step's output: the old one is moved away, or removed if soon made again."""
    if step.out.is_symlink():
        step.out.unlink()
        return
    if not step.out.exists():
        return
    if step.command not in _PRECIOUS:
        shutil.rmtree(step.out) if step.out.is_dir() else step.out.unlink()
        return
    attic = folder / "replaced"
    attic.mkdir(exist_ok=True)
    number = 1
    while (attic / f"{step.out.name}-{number}").exists():
        number += 1
    step.out.rename(attic / f"{step.out.name}-{number}")


def _command(argv: Sequence[str], lock: int, quiet: bool) -> int:
    """Run a command of ours to its end; Ctrl-C is handed on once, a kill of us kills it.

    It holds our lock as long as it lives, so that no second run meets it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "instructgen", *argv],
        stdout=subprocess.DEVNULL if quiet else None,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "INSTRUCTGEN_PARENT": str(os.getpid())},
        pass_fds=[lock],
        process_group=0,
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            raise
