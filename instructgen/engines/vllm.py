"""The vllm engine: one vLLM instance in this process, which runs several batches at once.

The same code is used for the GPU build and the CPU build of vLLM. A single thread runs vLLM
while callers add requests, so that vLLM is not idle between two batches. This engine does not
serve HTTP; to use a running server, choose the ``openai`` engine.
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
    operational,
    probe_schema_enforcement,
    prompt_tokens,
)
from instructgen.errors import EngineDied, EngineError, first_line
from instructgen.models.folders import has_gpu, model_folder
from instructgen.models.loading import load_error, read_tokenizer

_DEATH_CHECK_INTERVAL_S = 0.5

_Result = tuple[int, Completion] | EngineError
# Position, request, prompt tokens, and the queue for the completion. None ends the thread.
_Job = tuple[int, Request, list[int], "queue.SimpleQueue[_Result]"] | None


class VllmEngine(LocalEngine):
    """Runs vLLM without a server, with batching and prefix caching."""

    name = "vllm"

    dtype: str = Field(
        "auto",
        description="Data type of the weights, such as bfloat16 or float16. With auto, it is "
        "bfloat16 on a CPU, and vLLM chooses it on a GPU.",
    )
    max_num_seqs: int = operational(64, "Number of requests decoded at the same time.", ge=1)
    tensor_parallel_size: int = operational(1, "Number of GPUs to split the model across.", ge=1)
    gpu_memory_utilization: float = operational(
        0.9, "Fraction of GPU memory to use (GPU only).", gt=0, le=1
    )
    cpu_kvcache_gib: int = operational(2, "Size of the key-value cache in GiB (CPU only).", ge=1)
    enforce_eager: bool | None = operational(
        None, "Run the model without compiling it. Default: true on a CPU, false on a GPU."
    )
    own_process: bool | None = operational(
        None, "Run the core of vLLM in a separate process. Default: true on a GPU, false on a CPU."
    )

    _llm: Any = PrivateAttr(None)
    _tokenizer: Any = PrivateAttr(None)
    _lock: threading.RLock = PrivateAttr(default_factory=threading.RLock)
    _jobs: queue.SimpleQueue[_Job] = PrivateAttr(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = PrivateAttr(None)
    _ended: EngineError | None = PrivateAttr(None)

    def has_chat_template(self) -> bool:
        """Return whether the tokenizer has a chat template."""
        if self._tokenizer is None:
            _silence_libraries()
            self._tokenizer = read_tokenizer(self.model)
        return bool(self._tokenizer.chat_template)

    def enforces_schema(self) -> bool:
        """Return whether vLLM enforces a JSON schema, which is tested with one request."""
        return self.has_chat_template() and probe_schema_enforcement(self)

    def start(self) -> None:
        """Load the model, which takes 10 to 60 s for a small model on a CPU."""
        with self._lock:
            if self._ended is not None:
                raise self._ended
            if self._llm is not None:
                return
            self._jobs = queue.SimpleQueue()
            ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=self._serve, args=(self._jobs, ready), daemon=True
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
                watch = threading.Thread(target=_report_death, args=(weakref.ref(core),))
                watch.daemon = True
                watch.start()

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield the position and completion of each request: an error if its prompt is too long."""
        self.start()
        results: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        accepted: list[tuple[int, Request, list[int]]] = []
        for position, request in enumerate(requests):
            tokens = prompt_tokens(self._tokenizer, request)
            if not tokens:
                results.put((position, Completion.failed("the prompt is empty")))
            elif len(tokens) >= self.max_model_len:
                error = f"the prompt has {len(tokens)} tokens; the limit is {self.max_model_len}"
                results.put((position, Completion.failed(error, len(tokens))))
            else:
                accepted.append((position, request, tokens))
        with self._lock:
            if self._ended is not None:
                raise self._ended
            for job in accepted:
                self._jobs.put((*job, results))
        for _ in requests:
            result = results.get()
            if isinstance(result, EngineError):
                raise result
            yield result

    def restart(self) -> None:
        """Discard the vLLM instance, which has died; the next request starts a new one."""
        with self._lock:
            self._drop()

    def close(self) -> None:
        """Stop the thread that runs vLLM, release the model and cancel unfinished requests."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout=60)
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        llm, self._llm, self._thread, self._ended = self._llm, None, None, None
        if llm is not None:
            # The core of an engine that died may raise here; it is discarded in any case.
            with contextlib.suppress(Exception):
                llm.llm_engine.engine_core.shutdown()

    def load(self) -> Any:
        """Return a vLLM instance of the model, configured for this machine.

        Raises:
            EngineError: vLLM is not installed, or does not start.
            ConfigError: the model needs Python code from its folder; such code is never executed.
        """
        _silence_libraries()
        cpu = not has_gpu()
        own_process = self.own_process if self.own_process is not None else not cpu
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if own_process else "0"
        options: dict[str, Any] = {}
        if cpu:
            _work_around_llvmlite()
            cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(self.cpu_kvcache_gib))
            # A request with a seed crashes the CPU build when its prefill is split
            # ("CPU Generator does not use offset"), so chunked prefill is off.
            options = {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(4096, self.max_model_len),
            }
        else:
            options = {"gpu_memory_utilization": self.gpu_memory_utilization}
        eager = self.enforce_eager if self.enforce_eager is not None else cpu
        # These warnings concern vLLM's own use of torch, which users cannot fix.
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
            raise _missing_package(error) from error
        except (OSError, ValueError, RuntimeError) as error:
            if "trust_remote_code" in str(error):
                raise load_error(self.model, error) from error
            raise EngineError(
                f"vLLM cannot start with --model={self.model}: {first_line(error)}",
                "Use a smaller max_model_len (a recipe key), a different model, or "
                "--engine=transformers.",
            ) from error

    # -- the stepping thread: no other thread calls vLLM while it runs ------------------

    def _serve(self, jobs: queue.SimpleQueue[_Job], ready: queue.SimpleQueue[Any]) -> None:
        """Load and run the model in the same thread.

        On a CPU, loading and running use OpenMP, which keeps a team of worker threads for each
        thread that uses it. With two threads, the two teams would have more workers than there
        are cores. The workers would sleep between operations, and a step would take 40% longer.
        """
        try:
            llm = self.load()
        except BaseException as error:  # noqa: BLE001 (start() raises it again)
            ready.put(error)
            return
        engine = llm.llm_engine
        ready.put(llm)
        del llm
        self._run(engine, jobs)

    def _run(self, engine: Any, jobs: queue.SimpleQueue[_Job]) -> None:
        waiting: dict[str, tuple[int, queue.SimpleQueue[_Result]]] = {}
        ids = itertools.count()
        try:
            while True:
                # Add all requests that have arrived since the last step.
                while not waiting or not jobs.empty():
                    job = jobs.get()
                    if job is None:
                        # Not EngineDied: a closed engine must not be restarted.
                        error = EngineError("The vllm engine was closed before all answers.")
                        self._end(error, jobs, waiting)
                        return
                    self._add(engine, str(next(ids)), job, waiting)
                for output in engine.step():
                    position, results = waiting.pop(output.request_id)
                    results.put((position, _completion(output)))
        except Exception as error:  # noqa: BLE001 (all waiting callers must receive it)
            death = EngineDied(f"The vLLM engine died ({first_line(error)}).")
            self._end(death, jobs, waiting)

    def _add(
        self,
        engine: Any,
        name: str,
        job: tuple[int, Request, list[int], queue.SimpleQueue[_Result]],
        waiting: dict[str, tuple[int, queue.SimpleQueue[_Result]]],
    ) -> None:
        from vllm import TokensPrompt

        position, request, tokens, results = job
        params = sampling_params(request, self.max_model_len - len(tokens))
        try:
            engine.add_request(name, TokensPrompt(prompt_token_ids=tokens), params)
        except ValueError as error:
            results.put((position, Completion.failed(first_line(error), len(tokens))))
        else:
            waiting[name] = (position, results)

    def _end(
        self,
        error: EngineError,
        jobs: queue.SimpleQueue[_Job],
        waiting: dict[str, tuple[int, queue.SimpleQueue[_Result]]],
    ) -> None:
        with self._lock:
            self._ended = error
            pending = [results for _, results in waiting.values()]
            while not jobs.empty():
                job = jobs.get()
                if job is not None:
                    pending.append(job[3])
        for results in {id(r): r for r in pending}.values():
            results.put(error)


def sampling_params(request: Request, room: int) -> Any:
    """Return a request's `SamplingParams` for vLLM, limited to ``room`` tokens of completion."""
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
        # Partial completions are not used, so vLLM need not build one at each step.
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(json=schema, disable_any_whitespace=True)
        if schema
        else None,
    )


def _work_around_llvmlite() -> None:
    """Allow vLLM's CPU build to start after numba was imported.

    At startup, vLLM reads ``__dict__`` of every value of every imported module. One such value
    is the library handle of llvmlite, which returns a function for any attribute, not a dict.
    """
    with contextlib.suppress(ImportError):
        from llvmlite.binding import ffi

        ffi.lib._fntab["__dict__"] = {}


def _missing_package(error: ImportError) -> EngineError:
    return EngineError(
        f"The vllm engine needs the package {error.name}.",
        "Run: make setup, or pip install 'instructgen[vllm]' (GPU) or 'instructgen[cpu]' (CPU).",
    )


def _report_death(core: weakref.ref[Any]) -> None:
    """Raise an error in the thread that waits for a vLLM core whose process was killed.

    vLLM's synchronous client notices that the process has ended, but `get_output` does
    not return (seen in vLLM 0.32, SyncMPClient.get_output).
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    while (client := core()) is not None:
        if client.resources.engine_dead:
            client.outputs_queue.put_nowait(EngineDeadError())
            return
        del client
        time.sleep(_DEATH_CHECK_INTERVAL_S)


def _completion(output: Any) -> Completion:
    generated = output.outputs[0]
    known: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
    reason = known.get(generated.finish_reason or "", "error")
    return Completion(
        text=generated.text,
        finish_reason=reason,
        prompt_tokens=len(output.prompt_token_ids),
        output_tokens=len(generated.token_ids),
        error=None if reason != "error" else f"vLLM finish reason {generated.finish_reason}",
    )


def _silence_libraries() -> None:
    for name, value in {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # For the child processes of vLLM, which do not inherit warning filters.
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }.items():
        os.environ.setdefault(name, value)
