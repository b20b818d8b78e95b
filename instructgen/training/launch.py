"""Train in several processes, by rerunning the command under a launcher (accelerate, torchrun).

The configuration files in accelerate/ can also be passed to `accelerate launch`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from instructgen.errors import ConfigError
from instructgen.models.folders import has_gpu

CONFIGS = Path(__file__).parent / "accelerate"
_LAUNCH_OPTIONS = ("--strategy", "--processes")


def launch(strategy: str, processes: int | None) -> None:
    """Replace this process with a launcher that runs the same command in several processes.

    Do nothing if this process was itself started by a launcher.

    Args:
        strategy: ``ddp``, ``fsdp``, ``zero2`` or ``zero3``; each has a configuration
            file in accelerate/.
        processes: number of processes; None for one per GPU.

    Raises:
        ConfigError: the strategy requires GPUs and this machine has none, or ``processes``
            is less than 1.
    """
    if "WORLD_SIZE" in os.environ:
        return
    if strategy != "ddp" and not has_gpu():
        raise needs_gpus(strategy)
    if processes is None:
        processes = _gpu_count()
    if processes < 1:
        raise ConfigError("--processes must be at least 1.", "Pass --processes=1 or more.")
    # Safe: no shell is involved, and the arguments are those of this process.
    os.execv(sys.executable, [sys.executable, *command(strategy, processes, sys.argv[1:])])  # noqa: S606


def needs_gpus(strategy: str) -> ConfigError:
    """Return the error for a strategy that requires GPUs, on a machine without GPUs."""
    return ConfigError(
        f"The strategy {strategy} requires GPUs. On a CPU, accelerate would silently use ddp.",
        "Pass --strategy=ddp.",
    )


def command(strategy: str, processes: int, arguments: list[str]) -> list[str]:
    """Return the arguments with which Python starts the launcher, to rerun the current command.

    Args:
        strategy: name of a configuration file in accelerate/, without its extension; not used on
            a CPU.
        processes: number of processes.
        arguments: arguments of the current command; --strategy and --processes are removed.
    """
    kept, skip = [], False
    for argument in arguments:
        if skip or argument in _LAUNCH_OPTIONS:
            skip = not skip
        elif not argument.startswith(tuple(f"{o}=" for o in _LAUNCH_OPTIONS)):
            kept.append(argument)
    if not has_gpu():
        # On a CPU, accelerate's launcher starts one process whatever --num_processes says.
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        return [*launcher, f"--nproc_per_node={processes}", "-m", "instructgen", *kept]
    return [
        *("-m", "accelerate.commands.launch"),
        *("--config_file", str(CONFIGS / f"{strategy}.yaml")),
        *("--num_processes", str(processes)),
        *("-m", "instructgen", *kept),
    ]


def _gpu_count() -> int:
    import torch

    return max(1, int(torch.cuda.device_count()))


def processes() -> int:
    """Return the number of training processes, which the launcher sets in WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this process is the main one, which writes the output files."""
    return int(os.environ.get("RANK", "0")) == 0
