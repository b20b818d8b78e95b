"""The command `run`: runs the outdated steps of a pipeline, each in a separate process."""

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
from instructgen.plugins import loaded_files
from instructgen.schema.progress import Progress, Watch
from instructgen.store import locked, own_folder, storage, write_record

# If a pipeline is killed, its step is killed too, but may hold the lock for a moment longer.
_PATIENCE_S = 20.0
# Creating the output of these commands is expensive, so old output is moved and not removed.
_EXPENSIVE = ("generate", "prefer", "train", "ablate")
# The exit code of a command that wrote its rows, but ended without reaching its target.
_ENDED_EARLY = 3
_INVALID = 2


class StepError(InstructgenError, RuntimeError):
    """The command of a step failed. It has already printed its own error message."""

    def __init__(self, step: Step, code: int) -> None:
        cause = f"exit code {code}" if code > 0 else f"signal {-code}"
        again = "rerun the same command."
        hint = f"Fix the problem, then {again}" if code == _INVALID else f"To resume, {again}"
        super().__init__(f"The step {step.name} failed ({cause}).", hint)
        self.exit_code = code if code > 0 else 1


@dataclass(slots=True)
class StepRun:
    """The result of a step in one run of the pipeline, such as whether and why the step ran."""

    name: str
    command: str
    why: str
    ran: bool
    out: str
    seconds: float = 0.0
    ended_early: bool = False


@dataclass(slots=True)
class PipelineResult:
    """The result of running a pipeline: its steps in order, and the duration in seconds."""

    out: Path
    steps: list[StepRun] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ended_early(self) -> list[str]:
        """The names of the steps that ended early, such as `generate` with too few rows."""
        return [step.name for step in self.steps if step.ended_early]


def steps_of(
    pipeline: str, out: Path | None, inputs: Mapping[str, str], *, small: bool
) -> tuple[Path, list[Step]]:
    """Return the output folder, by default ``runs/NAME``, and the steps of a pipeline."""
    folder = Path("runs") / pipeline_path(pipeline).stem if out is None else out
    return folder, load_steps(pipeline, folder, inputs, small=small)


@command(RunOptions, "pipeline", "out")
def run(options: RunOptions, watch: Watch | None = None) -> PipelineResult:
    """Run the steps of a pipeline that are not up to date.

    Progress is reported once per step: why it runs or is skipped and, if it runs, its command.

    Raises:
        ConfigError: the pipeline is invalid; nothing was run.
        RunError: the output folder is in use, or pipeline.json is damaged.
        StorageError: the files cannot be written.
        StepError: a step failed.
    """
    return run_steps(options, watch, quiet=False)


def run_steps(options: RunOptions, watch: Watch | None, *, quiet: bool) -> PipelineResult:
    """Run a pipeline; see `run`. With ``quiet``, the steps print only errors."""
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
    """Run a step, record it in pipeline.json, and return its time in seconds."""
    step = planned.step
    if step.name not in state and step.out.exists():
        raise RunError(
            f"{step.out} already exists, and this pipeline did not write it.",
            "Move this file or folder, or use another --out.",
        )
    if planned.from_scratch or (step.name in state and step.out.is_file()):
        # A kill may have left a file that is not recorded yet. It is replaced too.
        _clear(step, folder)
    for path, text in step.files.items():
        own_folder(path.parent).mkdir(exist_ok=True)
        write_record(path, text.encode())
    before = state.get(step.name)
    earlier = 0.0 if planned.from_scratch or before is None else before.seconds
    record = StepRecord(fingerprint(step), seconds=earlier)
    state[step.name] = record
    write_record(folder / STATE, state_bytes(state))
    began = time.monotonic()
    command, *arguments = step.argv
    code = _command([command, *(["--quiet"] if quiet else []), *arguments], lock, quiet)
    seconds = time.monotonic() - began
    record.seconds = round(earlier + seconds, 1)
    if code not in (0, _ENDED_EARLY):
        if code == _INVALID and before is not None and not planned.from_scratch:
            # The command rejected its options before it wrote, so the earlier output is unchanged.
            state[step.name] = before
        write_record(folder / STATE, state_bytes(state))
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        raise StepError(step, code)
    record.output = output_digest(step.out)
    if record.output is None:
        raise RuntimeError(
            f"The step {step.name} succeeded, but its output {step.out} is incomplete. This is a "
            "bug; please report it."
        )
    record.ended_early = code == _ENDED_EARLY
    write_record(folder / STATE, state_bytes(state))
    return seconds


def _clear(step: Step, folder: Path) -> None:
    """Remove a step's old output, or move it to ``replaced`` if it took long to create."""
    if step.out.is_symlink():
        step.out.unlink()
        return
    if not step.out.exists():
        return
    if step.command not in _EXPENSIVE:
        shutil.rmtree(step.out) if step.out.is_dir() else step.out.unlink()
        return
    replaced = folder / "replaced"
    replaced.mkdir(exist_ok=True)
    number = 1
    while (replaced / f"{step.out.name}-{number}").exists():
        number += 1
    step.out.rename(replaced / f"{step.out.name}-{number}")


def _command(argv: Sequence[str], lock: int, quiet: bool) -> int:
    """Run a command in a new process, and return its exit code.

    If this process is killed, the new process is killed too. It also holds the lock of the output
    folder, so that a second run of the pipeline waits until it ends.
    """
    plugins = [f"--plugin={file}" for file in loaded_files()]
    process = subprocess.Popen(
        [sys.executable, "-m", "instructgen", *argv, *plugins],
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
