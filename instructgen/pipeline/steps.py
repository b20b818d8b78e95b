"""The command run: runs the steps of a pipeline that have to run, one process each."""

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

from instructgen.commands.interface import command
from instructgen.commands.options import RunOptions
from instructgen.errors import InstructgenError, RunError
from instructgen.pipeline.definition import load_steps, pipeline_path
from instructgen.pipeline.plan import (
    STATE,
    Planned,
    State,
    decide,
    fingerprint,
    output_digest,
    read_state,
    state_bytes,
)
from instructgen.pipeline.records import StepRecord
from instructgen.pipeline.step import Step
from instructgen.schema.progress import Progress, Watch
from instructgen.store import locked, storage, write_atomic

# The step of a killed run is killed by the kernel, and may hold its folder a moment longer.
_PATIENCE_S = 20.0
# The output of these commands took a model's time, so that it is moved away and not removed.
_EXPENSIVE = ("generate", "prefer", "train", "ablate")
# generate has reported why it ended before its target, and has written its rows.
_ENDED_EARLY = 3
_INVALID = 2


class StepError(InstructgenError, RuntimeError):
    """The command of a step failed; its own message is printed before this one."""

    def __init__(self, step: Step, code: int) -> None:
        cause = f"exit code {code}" if code > 0 else f"signal {-code}"
        super().__init__(
            f"The step {step.name} failed ({cause}).",
            "Fix the problem, then rerun the same command."
            if code == _INVALID
            else "Rerun the same command to resume.",
        )
        self.exit_code = code if code > 0 else 1


@dataclass(slots=True)
class StepRun:
    """A step in this run of the pipeline: whether and why it ran, and its seconds."""

    name: str
    command: str
    why: str
    ran: bool
    out: str
    seconds: float = 0.0
    ended_early: bool = False


@dataclass(slots=True)
class PipelineResult:
    """The result of a pipeline: its steps in order, and the seconds of this run."""

    out: Path
    steps: list[StepRun] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ended_early(self) -> list[str]:
        """The names of the steps that ended before their target."""
        return [step.name for step in self.steps if step.ended_early]


def steps_of(
    pipeline: str, out: Path | None, inputs: Mapping[str, str], *, small: bool
) -> tuple[Path, list[Step]]:
    """The output folder, by default ``runs/NAME``, and the steps of a pipeline."""
    folder = Path("runs") / pipeline_path(pipeline).stem if out is None else out
    return folder, load_steps(pipeline, folder, inputs, small=small)


@command(RunOptions, "pipeline", "out")
def run(options: RunOptions, watch: Watch | None = None) -> PipelineResult:
    """Run the steps of a pipeline, or those that are left.

    Progress is reported with each step: why it runs or not and, if it runs, its command line.

    Raises:
        ConfigError: the pipeline is invalid; nothing was run.
        RunError: the folder is in use, or its state is damaged.
        StorageError: the files cannot be written.
        StepError: a step failed.
    """
    return run_steps(options, watch, quiet=False)


def run_steps(options: RunOptions, watch: Watch | None, *, quiet: bool) -> PipelineResult:
    """Run a pipeline; with ``quiet`` the steps print errors only. See `run`."""
    began = time.monotonic()
    folder, steps = steps_of(options.pipeline, options.out, options.inputs, small=options.small)
    result = PipelineResult(folder)
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait_s=_PATIENCE_S) as lock:
            state = read_state(folder)
            for number, step in enumerate(steps, start=1):
                planned = decide(step, state)
                if watch is not None:
                    watch(_progress(planned, number, len(steps)))
                seconds = _run_step(planned, folder, state, lock, quiet) if planned.runs else 0.0
                ended_early = state[step.name].ended_early
                result.steps.append(
                    StepRun(
                        step.name,
                        step.command,
                        planned.why,
                        planned.runs,
                        str(step.out),
                        seconds,
                        ended_early,
                    )
                )
    result.seconds = time.monotonic() - began
    return result


def _progress(planned: Planned, number: int, count: int) -> Progress:
    line = (shlex.join(["instructgen", *planned.step.argv]),) if planned.runs else ()
    return Progress(planned.step.name, number, count, "steps", notes=(planned.why, *line))


def _run_step(planned: Planned, folder: Path, state: State, lock: int, quiet: bool) -> float:
    """Run a step and record it; return its seconds."""
    step = planned.step
    if step.name not in state and step.out.exists():
        raise RunError(
            f"{step.out} exists already, and no step of this pipeline wrote it.",
            "Move it away, or give another --out.",
        )
    if planned.from_scratch or (step.name in state and step.out.is_file()):
        # A file that was written just before a kill, and not recorded, is replaced too.
        _clear(step, folder)
    for path, text in step.files.items():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, [text.encode()])
    before = state.get(step.name)
    earlier = 0.0 if planned.from_scratch or before is None else before.seconds
    record = StepRecord(fingerprint(step), seconds=earlier)
    state[step.name] = record
    write_atomic(folder / STATE, [state_bytes(state)])
    began = time.monotonic()
    code = _command([*step.argv, *(["--quiet"] if quiet else [])], lock, quiet)
    seconds = time.monotonic() - began
    record.seconds = round(earlier + seconds, 1)
    if code not in (0, _ENDED_EARLY):
        if code == _INVALID and before is not None and not planned.from_scratch:
            # The command did nothing, so that the output before it is still there.
            state[step.name] = before
        write_atomic(folder / STATE, [state_bytes(state)])
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        raise StepError(step, code)
    record.output = output_digest(step.out)
    if record.output is None:
        raise RuntimeError(f"{step.name} succeeded without a complete output in {step.out}")
    record.ended_early = code == _ENDED_EARLY
    write_atomic(folder / STATE, [state_bytes(state)])
    return seconds


def _clear(step: Step, folder: Path) -> None:
    """Move away the old output of a step, or remove it if it is quick to write again."""
    if step.out.is_symlink():
        step.out.unlink()
        return
    if not step.out.exists():
        return
    if step.command not in _EXPENSIVE:
        shutil.rmtree(step.out) if step.out.is_dir() else step.out.unlink()
        return
    attic = folder / "replaced"
    attic.mkdir(exist_ok=True)
    number = 1
    while (attic / f"{step.out.name}-{number}").exists():
        number += 1
    step.out.rename(attic / f"{step.out.name}-{number}")


def _command(argv: Sequence[str], lock: int, quiet: bool) -> int:
    """Run a command of instructgen; Ctrl-C is passed on once, and a kill of this process kills it.

    The command holds the folder's lock as long as it runs, so that a second run waits for it.
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
