"""Where the replicas of an engine run: on this machine, on several servers, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from instructgen.distributed.cluster import connected
from instructgen.distributed.hosting import gpus_per_replica
from instructgen.distributed.processes import ProcessEngine
from instructgen.distributed.replicas import ReplicatedEngine
from instructgen.engines import Engine, LocalEngine
from instructgen.errors import ConfigError
from instructgen.models.folders import has_gpu


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of replicas, the servers, and the Ray cluster that the user has named.

    ``replicas`` is the number of replicas, or None for one. ``endpoints`` are the URLs of servers,
    each of which is a replica. ``ray`` is the address of a Ray cluster, ``auto`` for the one that
    this machine belongs to, or None for no cluster.
    """

    replicas: int | None = None
    endpoints: tuple[str, ...] = ()
    ray: str | None = None

    @contextmanager
    def engine(self, model: Engine) -> Iterator[Engine]:
        """Yield the engine that answers requests: ``model``, or its replicas.

        Raises:
            ConfigError: the options do not fit the engine or this machine.
        """
        if model.name == "openai" and (self.replicas is not None or self.ray is not None):
            raise ConfigError(
                "--replicas and --ray start the model; the engine openai uses servers that run.",
                "Pass --endpoint once for each server.",
            )
        if self.ray is not None:
            from instructgen.distributed.actors import ray_replicas

            with connected(self.ray) as ray:
                yield ReplicatedEngine.of(model, ray_replicas(ray, model, self.replicas or 1))
        elif len(self.endpoints) > 1:
            yield ReplicatedEngine.of(model, _servers(model, self.endpoints))
        elif self.replicas is not None and self.replicas > 1:
            yield ReplicatedEngine.of(model, _processes(model, self.replicas))
        else:
            yield model


def _servers(model: Engine, urls: Sequence[str]) -> list[tuple[str, Engine]]:
    if repeated := [url for url in urls if urls.count(url) > 1]:
        raise ConfigError(f"--endpoint={repeated[0]} is passed twice.", "Pass each server once.")
    # What fails is tried on another server, so it is not repeated on the same one.
    options = {**model.model_dump(), "max_retries": 0}
    return [(url, type(model).model_validate({**options, "endpoint": url})) for url in urls]


def _processes(model: Engine, count: int) -> list[tuple[str, Engine]]:
    """Return replicas in processes of this machine, each with its GPUs or its cores."""
    if not isinstance(model, LocalEngine):
        return [(f"replica {i}", ProcessEngine.of(model, {})) for i in range(count)]
    if has_gpu():
        groups = gpu_groups(count, gpus_per_replica(model))
        variables = [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
        return [
            (f"replica {i} (GPU {v['CUDA_VISIBLE_DEVICES']})", ProcessEngine.of(model, v))
            for i, v in enumerate(variables)
        ]
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise ConfigError(
            f"--replicas={count}: this machine has no GPU and {len(cores)} cores.",
            f"Pass --replicas={len(cores)} or less.",
        )
    size = len(cores) // count
    shares = [tuple(cores[i * size : (i + 1) * size]) for i in range(count)]
    return [
        (f"replica {i} (cores {share[0]}-{share[-1]})", ProcessEngine.of(model, {}, share))
        for i, share in enumerate(shares)
    ]


def gpu_groups(count: int, size: int) -> list[list[str]]:
    """Return ``count`` groups of ``size`` GPUs, as in the variable CUDA_VISIBLE_DEVICES.

    Raises:
        ConfigError: this machine has fewer GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = [name.strip() for name in visible.split(",") if name.strip()]
    else:
        import torch

        gpus = [str(i) for i in range(torch.cuda.device_count())]
    if count * size > len(gpus):
        raise ConfigError(
            f"--replicas={count}: {count} replicas of {size} GPUs need {count * size} GPUs, and "
            f"this machine has {len(gpus)}.",
            f"Pass --replicas={max(1, len(gpus) // size)}, or a smaller tensor_parallel_size.",
        )
    return [gpus[i * size : (i + 1) * size] for i in range(count)]
