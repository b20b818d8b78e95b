"""vLLM inside this process: one engine, fed from any number of batches at once.

The same code drives the GPU build and the CPU build. A single thread steps the
engine while callers add requests, so the engine never drains between batches.
It does not serve HTTP; for a running server use the ``openai`` engine.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field, PrivateAttr

from instructgen.engines import (
    Completion,
    FinishReason,
    LocalEngine,
    Request,
    check_schema_binds,
    operational,
    prompt_tokens,
)
from instructgen.errors import EngineDied, EngineError, first_line
from instructgen.models.folders import has_gpu, model_folder
from instructgen.models.loading import load_error, read_tokenizer

_WATCH_EVERY_S = 0.5

_Answer = tuple[int, Completion] | EngineError
# A request to run, with its position, its tokens and where its answer goes; None to end.
_Order = tuple[int, Request, list[int], "queue.SimpleQueue[_Answer]"] | None


class VllmEngine(LocalEngine):
    """vLLM, offline and batched, with prefix caching."""

    name = "vllm"

    dtype: str = Field("auto", description="weights' type, as vLLM names it")
    max_num_seqs: int = operational(64, "requests decoded at the same time", ge=1)
    tensor_parallel_size: int = operational(1, "GPUs that share one model", ge=1)
    gpu_memory_utilization: float = operational(0.9, "share of a GPU's memory", gt=0, le=1)
    cpu_kvcache_gib: int = operational(2, "key-value cache on a CPU, in GiB", ge=1)
    enforce_eager: bool | None = operational(
        None, "skip compilation; empty: on a CPU yes, on a GPU no"
    )
    own_process: bool | None = operational(
        None, "run the engine core in its own process; empty: on a GPU yes, on a CPU no"
    )

    _llm: Any = PrivateAttr(None)
    _tokenizer: Any = PrivateAttr(None)
    _gate: threading.RLock = PrivateAttr(default_factory=threading.RLock)
    _orders: queue.SimpleQueue[_Order] = PrivateAttr(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = PrivateAttr(None)
    _ended: EngineError | None = PrivateAttr(None)

    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        if self._tokenizer is None:
            _quiet()
            self._tokenizer = read_tokenizer(self.model)
        return bool(self._tokenizer.chat_template)

    def binds_schema(self) -> bool:
        """Tried on the running model, once per start."""
        return self.chats() and check_schema_binds(self)

    def start(self) -> None:
        """Load the model: 10 to 60 s for a small one on a CPU."""
        with self._gate:
            if self._ended is not None:
                raise self._ended
            if self._llm is not None:
                return
            self._orders = queue.SimpleQueue()
            ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=self._serve, args=(self._orders, ready), daemon=True
            )
            self._thread.start()
            loaded = ready.get()
            if isinstance(loaded, BaseException):
                self._thread = None
                raise loaded
            self._llm = loaded
            self._tokenizer = loaded.get_tokenizer()
            core = self._llm.llm_engine.engine_core
            if hasattr(core, "outputs_queue"):
                wake = threading.Thread(target=_wake_when_dead, args=(weakref.ref(core),))
                wake.daemon = True
                wake.start()

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """As `Engine.complete`; a prompt with no room left for one token fails alone."""
        self.start()
        answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        rooms: list[tuple[int, Request, list[int]]] = []
        for position, request in enumerate(requests):
            tokens = prompt_tokens(self._tokenizer, request)
            if not tokens:
                answers.put((position, Completion.failed("the prompt is empty")))
            elif len(tokens) >= self.max_model_len:
                error = f"the prompt has {len(tokens)} tokens, the model takes {self.max_model_len}"
                answers.put((position, Completion.failed(error, len(tokens))))
            else:
                rooms.append((position, request, tokens))
        with self._gate:
            if self._ended is not None:
                raise self._ended
            for order in rooms:
                self._orders.put((*order, answers))
        for _ in requests:
            answer = answers.get()
            if isinstance(answer, EngineError):
                raise answer
            yield answer

    def restart(self) -> None:
        """Throw the dead engine away; the next request loads a new one."""
        with self._gate:
            self._drop()

    def close(self) -> None:
        """Stop the stepping thread and free the model; requests under way are given up."""
        self._orders.put(None)
        if self._thread is not None:
            self._thread.join(timeout=60)
        with self._gate:
            self._drop()

    def _drop(self) -> None:
        llm, self._llm, self._thread, self._ended = self._llm, None, None, None
        if llm is not None:
            # A dead core may refuse to shut down cleanly; it is being discarded.
            with contextlib.suppress(Exception):
                llm.llm_engine.engine_core.shutdown()

    def load(self) -> Any:
        """A vLLM of this model, with what this machine needs.

        Raises:
            EngineError: it is not installed, or does not start.
            ConfigError: the model needs code of its own.
        """
        _quiet()
        cpu = not has_gpu()
        own_process = self.own_process if self.own_process is not None else not cpu
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if own_process else "0"
        options: dict[str, Any] = {}
        if cpu:
            _answer_for_llvmlite()
            cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(self.cpu_kvcache_gib))
            # A per-request seed kills the CPU engine when a prefill is split
            # ("CPU Generator does not use offset"), so prefills stay whole.
            options = {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(4096, self.max_model_len),
            }
        else:
            options = {"gpu_memory_utilization": self.gpu_memory_utilization}
        eager = self.enforce_eager if self.enforce_eager is not None else cpu
        # About vLLM's own use of torch, which our users cannot mend.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
        try:
            from vllm import LLM

            return LLM(
                model=model_folder(self.model),
                dtype="bfloat16" if cpu and self.dtype == "auto" else self.dtype,
                max_model_len=self.max_model_len,
                max_num_seqs=self.max_num_seqs,
                tensor_parallel_size=self.tensor_parallel_size,
                enable_prefix_caching=True,
                enforce_eager=eager,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                trust_remote_code=False,
                **options,
            )
        except ImportError as error:
            raise _missing(error) from error
        except (OSError, ValueError, RuntimeError) as error:
            if "trust_remote_code" in str(error):
                raise load_error(self.model, error) from error
            raise EngineError(
                f"vLLM cannot start with --model {self.model}: {first_line(error)}",
                "Try a smaller max_model_len, another model, or --engine transformers.",
            ) from error

    # -- the stepping thread: the only one that touches the engine ----------------------

    def _serve(self, orders: queue.SimpleQueue[_Order], ready: queue.SimpleQueue[Any]) -> None:
        """Load the model and step it, in one thread.

        On a CPU both use OpenMP, which keeps a team of workers for every thread
        that ever computed. Two teams are more workers than cores, so they sleep
        instead of spin between two operations: 40% longer steps.
        """
        try:
            llm = self.load()
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            ready.put(error)
            return
        engine = llm.llm_engine
        ready.put(llm)
        del llm
        self._run(engine, orders)

    def _run(self, engine: Any, orders: queue.SimpleQueue[_Order]) -> None:
        waiting: dict[str, tuple[int, queue.SimpleQueue[_Answer]]] = {}
        ids = itertools.count()
        try:
            while True:
                # Between two steps everything asked for meanwhile is taken in.
                while not waiting or not orders.empty():
                    order = orders.get()
                    if order is None:
                        # No death: nobody must start it again.
                        self._end(EngineError("The engine was closed."), orders, waiting)
                        return
                    self._add(engine, str(next(ids)), order, waiting)
                for output in engine.step():
                    position, answers = waiting.pop(output.request_id)
                    answers.put((position, _completion(output)))
        except Exception as error:  # noqa: BLE001 (whatever it is, those who wait must hear of it)
            death = EngineDied(f"vLLM's engine died ({first_line(error)}).")
            self._end(death, orders, waiting)

    def _add(
        self,
        engine: Any,
        name: str,
        order: tuple[int, Request, list[int], queue.SimpleQueue[_Answer]],
        waiting: dict[str, tuple[int, queue.SimpleQueue[_Answer]]],
    ) -> None:
        from vllm import TokensPrompt

        position, request, tokens, answers = order
        params = sampling_params(request, self.max_model_len - len(tokens))
        try:
            engine.add_request(name, TokensPrompt(prompt_token_ids=tokens), params)
        except ValueError as error:
            answers.put((position, Completion.failed(first_line(error), len(tokens))))
        else:
            waiting[name] = (position, answers)

    def _end(
        self,
        error: EngineError,
        orders: queue.SimpleQueue[_Order],
        waiting: dict[str, tuple[int, queue.SimpleQueue[_Answer]]],
    ) -> None:
        with self._gate:
            self._ended = error
            left = [answers for _, answers in waiting.values()]
            while not orders.empty():
                order = orders.get()
                if order is not None:
                    left.append(order[3])
        for answers in {id(a): a for a in left}.values():
            answers.put(error)


def sampling_params(request: Request, room: int) -> Any:
    """A request's sampling in vLLM's own type, with at most ``room`` tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    s, schema = request.sampling, request.schema
    return SamplingParams(
        temperature=s.temperature,
        top_p=s.top_p,
        max_tokens=min(s.max_tokens, room),
        presence_penalty=s.presence_penalty,
        frequency_penalty=s.frequency_penalty,
        stop=list(s.stop),
        seed=s.seed,
        # Nobody reads a half of a completion: do not build one at every step.
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(json=schema, disable_any_whitespace=True)
        if schema
        else None,
    )


def _answer_for_llvmlite() -> None:
    """Let vLLM's CPU build start after numba was imported.

    It asks every value of every module for its ``__dict__``, and llvmlite's handle
    of its library answers any name with a wrapped function, which is no dict.
    """
    with contextlib.suppress(ImportError):
        from llvmlite.binding import ffi

        ffi.lib._fntab["__dict__"] = {}


def _missing(error: ImportError) -> EngineError:
    return EngineError(
        f"The vllm engine needs the package {error.name}.",
        "Run: make setup, or pip install 'instructgen[vllm]' (GPU) or 'instructgen[cpu]'.",
    )


def _wake_when_dead(core: weakref.ref[Any]) -> None:
    """Wake whoever waits for a core that was killed.

    vLLM's synchronous client notes the death of its core's process but leaves
    `get_output` waiting for ever (seen with 0.32: SyncMPClient.get_output).
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    while (client := core()) is not None:
        if client.resources.engine_dead:
            client.outputs_queue.put_nowait(EngineDeadError())
            return
        del client
        time.sleep(_WATCH_EVERY_S)


def _completion(output: Any) -> Completion:
    answer = output.outputs[0]
    known: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
    reason = known.get(answer.finish_reason or "", "error")
    return Completion(
        text=answer.text,
        finish_reason=reason,
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=len(answer.token_ids),
        error=None if reason != "error" else f"finish reason {answer.finish_reason}",
    )


def _quiet() -> None:
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # For the processes that vLLM starts.
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }.items():
        os.environ.setdefault(name, value)
