"""Several processes for one training: the same command again, under a launcher.

The configurations in accelerate/ can be given to `accelerate launch` as they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from instructgen.errors import ConfigError
from instructgen.models.folders import has_gpu

CONFIGS = Path(__file__).parent / "accelerate"
_OPTIONS = ("--strategy", "--processes")


def launch(strategy: str, processes: int | None) -> None:
    """Become the launcher of this command, unless it started this process.

    Args:
        strategy: ``ddp``, ``fsdp``, ``zero2`` or ``zero3``: a configuration beside this file.
        processes: how many; None for one per GPU.

    Raises:
        ConfigError: the strategy needs GPUs and there are none.
    """
    if "WORLD_SIZE" in os.environ:
        return
    if strategy != "ddp" and not has_gpu():
        raise needs_gpus(strategy)
    if processes is None:
        processes = _gpus()
    if processes < 1:
        raise ConfigError("--processes is below 1.", "Give a number of processes.")
    # No shell is in between, and the arguments are this process's own.
    os.execv(sys.executable, [sys.executable, *command(strategy, processes, sys.argv[1:])])  # noqa: S606


def needs_gpus(strategy: str) -> ConfigError:
    """Why a strategy is refused on a CPU."""
    return ConfigError(
        f"{strategy} needs GPUs: on a CPU accelerate would silently train by ddp.",
        "Use --strategy ddp.",
    )


def command(strategy: str, processes: int, arguments: list[str]) -> list[str]:
    """The launcher's arguments, for this command's without those about processes."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument in _OPTIONS:
            skip = not skip
        elif not argument.startswith(tuple(f"{o}=" for o in _OPTIONS)):
            kept.append(argument)
    if not has_gpu():
        # On a CPU accelerate's launcher starts one process, whatever it is asked for.
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        return [*launcher, f"--nproc_per_node={processes}", "-m", "instructgen", *kept]
    return [
        *("-m", "accelerate.commands.launch"),
        *("--config_file", str(CONFIGS / f"{strategy}.yaml")),
        *("--num_processes", str(processes)),
        *("-m", "instructgen", *kept),
    ]


def _gpus() -> int:
    import torch

    return max(1, int(torch.cuda.device_count()))


def processes() -> int:
    """How many processes train together: set by accelerate's launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return int(os.environ.get("RANK", "0")) == 0
