"""The vllm engine: one vLLM instance in this process.

The same code is used for the GPU build and the CPU build of vLLM. Requests are added and
canceled between two steps of vLLM, so that it is not idle while completions are used. This engine
does not serve HTTP; to use a running server, choose the ``openai`` engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import warnings
import weakref
from collections import deque
from dataclasses import replace
from typing import Any

from pydantic import Field, PrivateAttr

from instructgen.engines import (
    Completion,
    FinishReason,
    LocalEngine,
    Request,
    operational,
    prompt_tokens,
    user_turn_of,
)
from instructgen.engines.thinking import (
    may_reason,
    opens_reasoning,
    split_reasoning,
    template_options,
)
from instructgen.errors import EngineDied, EngineError, first_line
from instructgen.models.folders import has_gpu, model_folder
from instructgen.models.loading import fastest_dtype, load_error, read_tokenizer

_DEATH_CHECK_INTERVAL_S = 0.5

# More requests than vLLM decodes at the same time, so that a finished one is replaced at once.
_WAITING_SHARE = 8
_CPU_SEQUENCES = 64
# The number of a request, the request (None: it is canceled) and the tokens of its prompt.
_Job = tuple[int, Request | None, list[int]]


class VllmEngine(LocalEngine):
    """Runs vLLM without a server, with batching and prefix caching."""

    name = "vllm"
    can_enforce_schemas = True

    dtype: str = Field(
        "auto",
        description="Data type of the weights, such as bfloat16 or float16. With auto, vLLM "
        "chooses it on a GPU. On a CPU it is bfloat16, or float32 if the processor has no "
        "instructions for bfloat16.",
    )
    max_num_seqs: int | None = operational(
        None,
        "Maximum number of requests decoded at the same time. Default: 64 on a CPU, and vLLM's own "
        "value on a GPU.",
        ge=1,
    )
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
    # How many requests the loaded model decodes at the same time, or 0 before it is loaded.
    _slots: int = PrivateAttr(0)
    _inbox: queue.SimpleQueue[_Job] = PrivateAttr(default_factory=queue.SimpleQueue)
    # The requests that vLLM has, and whether their prompt ends within reasoning.
    _prompts: dict[int, tuple[Request, bool]] = PrivateAttr(default_factory=dict)
    _completed: deque[tuple[int, Completion]] = PrivateAttr(default_factory=deque)

    def has_chat_template(self) -> bool:
        """Return whether the tokenizer has a chat template."""
        return bool(self._read_tokenizer().chat_template)

    def user_turn(self, system: str = "") -> tuple[tuple[int, ...], str]:
        """Return the beginning of a user's message in the chat template, and what follows it."""
        return user_turn_of(self._read_tokenizer(), system)

    def start(self) -> None:
        """Load the model, which takes 10 to 60 s for a small model on a CPU.

        On a CPU, loading and running use OpenMP, which keeps a team of worker threads for each
        thread that uses it. Therefore the thread that calls `next` must also call this method:
        with two teams, a step would take 40% longer.
        """
        if self._llm is not None:
            return
        self._llm = self.load()
        self._slots = int(self._llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)
        core = self._llm.llm_engine.engine_core
        if hasattr(core, "outputs_queue"):
            watch = threading.Thread(target=_report_death, args=(weakref.ref(core),), daemon=True)
            watch.start()

    def slots(self) -> int:
        """Return the number of requests that vLLM decodes at the same time."""
        return self._slots or self.max_num_seqs or _CPU_SEQUENCES

    def window(self) -> int:
        """Return the number of slots and a few more, so that a free slot has the next request."""
        return self.slots() + max(1, self.slots() // _WAITING_SHARE)

    def submit(self, number: int, request: Request) -> None:
        """Accept a request. It fails if its prompt is empty or too long for the model."""
        variables = template_options(request, self.thinking)
        tokens = prompt_tokens(self._read_tokenizer(), request, **variables)
        self._inbox.put((number, request, tokens))

    def cancel(self, number: int) -> None:
        """Stop the request at the next step of vLLM."""
        self._inbox.put((number, None, []))

    def next(self, timeout_s: float = 60.0) -> tuple[int, Completion] | None:
        """Add and cancel requests, run one step, and return a completion if there is one."""
        engine = self._llm.llm_engine
        try:
            if not self._completed and not engine.has_unfinished_requests():
                self._take(engine, self._inbox.get(timeout=timeout_s))
            while not self._inbox.empty():
                self._take(engine, self._inbox.get())
            if not self._completed and engine.has_unfinished_requests():
                for output in engine.step():
                    number = int(output.request_id)
                    known = self._prompts.pop(number, None)
                    if known is not None:
                        completion = split_reasoning(_completion(output), known[0], opened=known[1])
                        self._completed.append((number, completion))
        except queue.Empty:
            return None
        except Exception as error:
            raise EngineDied(f"The vLLM engine died ({first_line(error)}).") from error
        return self._completed.popleft() if self._completed else None

    def restart(self) -> None:
        """Discard the vLLM instance, which has died, and load the model again."""
        self._drop()
        self.start()

    def close(self) -> None:
        """Release the model and cancel unfinished requests."""
        self._drop()

    def _read_tokenizer(self) -> Any:
        if self._tokenizer is None:
            _silence_libraries()
            self._tokenizer = read_tokenizer(self.model)
        return self._tokenizer

    def _take(self, engine: Any, job: _Job) -> None:
        from vllm import TokensPrompt

        number, request, tokens = job
        if request is None:
            if self._prompts.pop(number, None) is not None:
                engine.abort_request([str(number)])
            return
        room = self.max_model_len - len(tokens)
        if not tokens or room < 1:
            error = f"the prompt has {len(tokens)} tokens; the limit is {self.max_model_len}"
            self._completed.append((number, Completion.failed(error, len(tokens))))
            return
        tokenizer = self._read_tokenizer()
        thinks = may_reason(tokenizer, request, self.thinking)
        extra = self.thinking_tokens if thinks and request.schema is None else 0
        params = sampling_params(_with_tokens(request, extra), room)
        prompt = TokensPrompt(prompt_token_ids=tokens)
        try:
            engine.add_request(str(number), prompt, params)
        except ValueError as error:
            failed = Completion.failed(first_line(error), len(tokens))
            self._completed.append((number, failed))
        else:
            self._prompts[number] = request, thinks and opens_reasoning(tokenizer, tokens)

    def _drop(self) -> None:
        llm, self._llm = self._llm, None
        self._prompts.clear()
        self._completed.clear()
        while not self._inbox.empty():
            self._inbox.get()
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
        if cpu or self.max_num_seqs is not None:
            options["max_num_seqs"] = self.max_num_seqs or _CPU_SEQUENCES
        eager = self.enforce_eager if self.enforce_eager is not None else cpu
        # These warnings concern vLLM's own use of torch, which users cannot fix.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
        try:
            from vllm import LLM

            return LLM(
                model=model_folder(self.model),
                dtype=fastest_dtype() if cpu and self.dtype == "auto" else self.dtype,
                max_model_len=self.max_model_len,
                tensor_parallel_size=self.tensor_parallel_size,
                enable_prefix_caching=True,
                enforce_eager=eager,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                trust_remote_code=False,
                # Small models fill a reply with spaces, until it is cut.
                structured_outputs_config={
                    "backend": "xgrammar",
                    "disable_any_whitespace": True,
                },
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


def _with_tokens(request: Request, extra: int) -> Request:
    """Return the request with more tokens for its completion."""
    s = request.sampling
    return replace(request, sampling=replace(s, max_tokens=s.max_tokens + extra))


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
        structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
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
