"""Runs replicas of an engine as actors on a Ray cluster.

Each replica has a placement group, so that all its GPUs are on one node. A replica for which no
node has room joins the run when one has. A replica that dies, alone or with its node, is started
again where there is room.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr

from instructgen import __version__
from instructgen.distributed.cluster import ray_line
from instructgen.distributed.hosting import (
    EngineSpec,
    HostedEngine,
    Ready,
    engine_spec,
    gpus_per_replica,
)
from instructgen.engines import Completion, Engine, LocalEngine, Request
from instructgen.engines.supervisor import Supervisor
from instructgen.errors import ConfigError, EngineDied, EngineError, InstructgenError

# How long a replica may wait for a node with room while no other one has a node.
_PATIENCE_S = 60.0
_POLL_S = 1.0
_TAKE_S = 10.0
_CONCURRENT_CALLS = 4


class EngineActor:
    """The code of an actor: runs an engine in a thread, and holds its completions.

    Methods return an error instead of raising it, because Ray changes the class of what is raised.
    """

    def __init__(self, spec: EngineSpec, version: str) -> None:
        self._spec, self._version = spec, version
        self._supervisor: Supervisor | None = None
        self._error: InstructgenError | None = None

    def start(self) -> Ready | InstructgenError:
        """Start the engine; return its window and slots."""
        if self._version != __version__:
            return ConfigError(
                f"a node of the cluster has instructgen {__version__}, and this machine has "
                f"{self._version}.",
                "Install the same version on all nodes.",
            )
        try:
            # An engine that dies is started again as another actor.
            engine = self._spec.build().model_copy(update={"max_restarts": 0})
            self._supervisor = Supervisor(engine)
            self._supervisor.start()
            return Ready(engine.window(), engine.slots())
        except InstructgenError as error:
            return error

    def submit(self, number: int, request: Request) -> None:
        """Pass a request to the engine."""
        if self._supervisor is not None:
            self._supervisor.submit(number, request)

    def cancel(self, number: int) -> None:
        """Give up a request."""
        if self._supervisor is not None:
            self._supervisor.cancel(number)

    def take(self, timeout_s: float) -> list[tuple[int, Completion]] | InstructgenError:
        """Wait for completions, and return all that there are; an error only after all of them."""
        assert self._supervisor is not None
        if self._error is not None:
            return self._error
        found: list[tuple[int, Completion]] = []
        try:
            result = self._supervisor.receive(timeout_s)
            while result is not None:
                found.append(result)
                result = self._supervisor.receive(0)
        except InstructgenError as error:
            if not found:
                return error
            self._error = error
        return found


class ActorEngine(HostedEngine):
    """An engine in an actor of its own; see `ray_replicas`."""

    name = "actor"

    _ray: Any = PrivateAttr()
    _bundle: dict[str, float] = PrivateAttr(default_factory=dict)
    _group: Any = PrivateAttr(None)
    _actor: Any = PrivateAttr(None)
    _taking: Any = PrivateAttr(None)
    _completed: deque[tuple[int, Completion]] = PrivateAttr(default_factory=deque)
    # The replicas of the run that have a node.
    _placed: set[int] = PrivateAttr(default_factory=set)

    def start(self) -> None:
        """Wait for a node with room, and start the actor there.

        Raises:
            EngineDied: the actor or its node has died meanwhile.
            EngineError, ConfigError: no node has room, or the engine cannot start.
        """
        if self._actor is not None:
            return
        ray = self._ray
        self._group = ray.util.placement_group([self._bundle], strategy="STRICT_PACK")
        alone_since = time.monotonic()
        while not self._group.wait(_POLL_S):
            if self._placed:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > _PATIENCE_S:
                raise EngineError(
                    f"no node of the cluster has {_words(self._bundle)} free.",
                    "Wait until another job has ended (ray status shows them), or add a node.",
                )
        self._placed.add(id(self))
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            placement_group=self._group
        )
        remote = ray.remote(EngineActor).options(
            num_cpus=self._bundle.get("CPU", 0),
            num_gpus=self._bundle.get("GPU", 0),
            max_concurrency=_CONCURRENT_CALLS,
            scheduling_strategy=strategy,
        )
        self._actor = remote.remote(engine_spec(self._model), __version__)
        try:
            answer = ray.get(self._actor.start.remote())
        except ray.exceptions.RayError as error:
            actor_died = isinstance(error, ray.exceptions.RayActorError)
            if actor_died and not error.actor_init_failed:
                raise EngineDied(f"A replica died while it started ({ray_line(error)}).") from error
            raise EngineError(
                f"A replica cannot start on the cluster: {ray_line(error)}.",
                "Install instructgen and the model on all nodes.",
            ) from error
        if isinstance(answer, InstructgenError):
            raise answer
        self._ready = answer

    def submit(self, number: int, request: Request) -> None:
        """Send the request to the actor."""
        self._actor.submit.remote(number, request)

    def cancel(self, number: int) -> None:
        """Tell the actor to give up the request."""
        self._actor.cancel.remote(number)

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Return the next completion from the actor.

        Raises:
            EngineDied: the actor or its node has died.
        """
        if not self._completed:
            if self._taking is None:
                self._taking = self._actor.take.remote(_TAKE_S)
            if not self._ray.wait([self._taking], timeout=timeout_s)[0]:
                return None
            taking, self._taking = self._taking, None
            try:
                answer = self._ray.get(taking)
            except self._ray.exceptions.RayError as error:
                raise EngineDied(f"A replica on the cluster died ({ray_line(error)}).") from error
            if isinstance(answer, InstructgenError):
                raise EngineDied(answer.message) from answer
            self._completed.extend(answer)
        return self._completed.popleft() if self._completed else None

    def close(self) -> None:
        """End the actor, and free its place on the node."""
        actor, self._actor, self._taking = self._actor, None, None
        group, self._group = self._group, None
        self._completed.clear()
        self._placed.discard(id(self))
        if self._ray.is_initialized():
            if actor is not None:
                self._ray.kill(actor)
            if group is not None:
                self._ray.util.remove_placement_group(group)


def ray_replicas(ray: Any, model: Engine, count: int) -> list[tuple[str, Engine]]:
    """Return replicas of an engine as actors.

    Args:
        ray: the module, connected to a cluster.
        model: the engine.
        count: the number of replicas.

    Raises:
        ConfigError: no node of the cluster is large enough for a replica.
    """
    bundle = _bundle(ray, model, count)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(k, 0) >= v for k, v in bundle.items()) for node in nodes):
        most = {k: int(max((node.get(k, 0) for node in nodes), default=0)) for k in bundle}
        raise ConfigError(
            f"--ray: a replica needs {_words(bundle)} on one node, and the largest node has "
            f"{_words(most)}.",
            "Use a smaller tensor_parallel_size or fewer replicas, or add nodes.",
        )
    placed, replicas = set[int](), list[tuple[str, Engine]]()
    for number in range(count):
        engine = ActorEngine(model=model.model, max_restarts=model.max_restarts)
        engine._ray, engine._model, engine._bundle, engine._placed = ray, model, bundle, placed
        replicas.append((f"replica {number} on the cluster", engine))
    return replicas


def _bundle(ray: Any, model: Engine, count: int) -> dict[str, float]:
    """Return what a replica takes of its node."""
    total = ray.cluster_resources()
    if not isinstance(model, LocalEngine):
        # It computes nothing itself.
        return {"CPU": 0.01}
    if total.get("GPU", 0):
        return {"GPU": float(gpus_per_replica(model)), "CPU": 1.0}
    return {"CPU": float(max(1, int(total.get("CPU", 1)) // count))}


def _words(bundle: Mapping[str, float]) -> str:
    return " and ".join(f"{value:g} {name}s" for name, value in bundle.items())
