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
)
from instructgen.engines.models import has_gpu, model_folder, prompt_tokens
from instructgen.errors import EngineDied, EngineError

_WATCH_EVERY_S = 0.5

_Answer = tuple[int, Completion] | EngineDied


def _operational(default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"resumable": True}, **limits)


class VllmEngine(LocalEngine):
    """vLLM, offline and batched, with prefix caching."""

    name = "vllm"

    dtype: str = Field("auto", description="weights' type, as vLLM names it")
    max_num_seqs: int = _operational(64, "requests decoded at the same time", ge=1)
    tensor_parallel_size: int = _operational(1, "GPUs that share one model", ge=1)
    gpu_memory_utilization: float = _operational(0.9, "share of a GPU's memory", gt=0, le=1)
    cpu_kvcache_gib: int = _operational(2, "key-value cache on a CPU, in GiB", ge=1)
    enforce_eager: bool | None = _operational(
        None, "skip compilation; empty: on a CPU yes, on a GPU no"
    )
    own_process: bool | None = _operational(
        None, "run the engine core in its own process; empty: on a GPU yes, on a CPU no"
    )

    _llm: Any = PrivateAttr(None)
    _tokenizer: Any = PrivateAttr(None)
    _waiting: dict[str, tuple[int, queue.SimpleQueue[_Answer]]] = PrivateAttr(default_factory=dict)
    _work: threading.Condition = PrivateAttr(default_factory=threading.Condition)
    _thread: threading.Thread | None = PrivateAttr(None)
    _closing: bool = PrivateAttr(False)
    _death: EngineDied | None = PrivateAttr(None)
    _ids: Iterator[int] = PrivateAttr(default_factory=itertools.count)

    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        if self._tokenizer is None:
            _quiet()
            try:
                from transformers import AutoTokenizer

                self._tokenizer = AutoTokenizer.from_pretrained(model_folder(self.model))
            except ImportError as error:
                raise _missing(error) from error
            except (OSError, ValueError) as error:
                raise EngineError(
                    f"--model {self.model}: its tokenizer cannot be loaded ({_first_line(error)}).",
                    "Check the name, and that the folder is complete or the hub reachable.",
                ) from error
        return bool(self._tokenizer.chat_template)

    def binds_schema(self) -> bool:
        """Tried on the running model, once per start."""
        return self.chats() and check_schema_binds(self)

    def start(self) -> None:
        """Load the model: 10 to 60 s for a small one on a CPU."""
        with self._work:
            self._start()

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """As `Engine.complete`; a prompt with no room left for one token fails alone."""
        answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        mine: list[str] = []
        with self._work:
            self._start()
            for position, request in enumerate(requests):
                self._add(position, request, answers, mine)
            self._work.notify_all()
        try:
            for _ in requests:
                answer = answers.get()
                if isinstance(answer, EngineDied):
                    raise answer
                yield answer
        finally:
            self._abandon(mine)

    def restart(self) -> None:
        """Throw the dead engine away; the next request loads a new one."""
        with self._work:
            self._drop()

    def close(self) -> None:
        """Stop the stepping thread and free the model."""
        with self._work:
            self._closing = True
            self._work.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=60)
        with self._work:
            self._drop()

    # -- inside, with self._work held -------------------------------------------------

    def _start(self) -> None:
        if self._death is not None:
            raise EngineDied(self._death.message)
        if self._llm is not None:
            return
        self._closing = False
        self._llm = self._load()
        self._tokenizer = self._llm.get_tokenizer()
        self._thread = threading.Thread(target=self._run, args=(self._llm,), daemon=True)
        self._thread.start()
        core = self._llm.llm_engine.engine_core
        if hasattr(core, "outputs_queue"):
            threading.Thread(target=_wake_when_dead, args=(weakref.ref(core),), daemon=True).start()

    def _drop(self) -> None:
        llm, self._llm, self._thread, self._death = self._llm, None, None, None
        self._waiting.clear()
        if llm is not None:
            # A dead core may refuse to shut down cleanly; it is being discarded.
            with contextlib.suppress(Exception):
                llm.llm_engine.engine_core.shutdown()

    def _load(self) -> Any:
        _quiet()
        cpu = not has_gpu()
        own_process = self.own_process if self.own_process is not None else not cpu
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if own_process else "0"
        options: dict[str, Any] = {}
        if cpu:
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
                **options,
            )
        except ImportError as error:
            raise _missing(error) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(
                f"vLLM cannot start with --model {self.model}: {_first_line(error)}",
                "Try a smaller max_model_len, another model, or --engine transformers.",
            ) from error

    def _add(
        self,
        position: int,
        request: Request,
        answers: queue.SimpleQueue[_Answer],
        mine: list[str],
    ) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        tokens = prompt_tokens(self._tokenizer, request)
        room = self.max_model_len - len(tokens)
        if not tokens or room < 1:
            error = (
                "the prompt is empty"
                if not tokens
                else f"the prompt has {len(tokens)} tokens, the model takes {self.max_model_len}"
            )
            answers.put((position, Completion.failed(error, len(tokens))))
            return
        s = request.sampling
        params = SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            max_tokens=min(s.max_tokens, room),
            presence_penalty=s.presence_penalty,
            frequency_penalty=s.frequency_penalty,
            stop=list(s.stop),
            seed=s.seed,
            structured_outputs=StructuredOutputsParams(
                json=request.schema, disable_any_whitespace=True
            )
            if request.schema
            else None,
        )
        name = str(next(self._ids))
        try:
            self._llm.llm_engine.add_request(name, TokensPrompt(prompt_token_ids=tokens), params)
        except ValueError as error:
            answers.put((position, Completion.failed(_first_line(error), len(tokens))))
            return
        self._waiting[name] = (position, answers)
        mine.append(name)

    def _abandon(self, names: list[str]) -> None:
        with self._work:
            left = [name for name in names if self._waiting.pop(name, None)]
            if left and self._llm is not None and self._death is None:
                self._llm.llm_engine.abort_request(left, internal=True)

    # -- the stepping thread ----------------------------------------------------------

    def _run(self, llm: Any) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        engine = llm.llm_engine
        while True:
            with self._work:
                while not self._waiting and not self._closing:
                    self._work.wait()
                if self._closing or self._llm is not llm:
                    return
                try:
                    outputs = engine.step()
                except (EngineDeadError, EngineGenerateError, RuntimeError) as error:
                    self._die(error)
                    return
                for output in outputs:
                    waiting = (
                        self._waiting.pop(output.request_id, None) if output.finished else None
                    )
                    if waiting is not None:
                        position, answers = waiting
                        answers.put((position, _completion(output)))

    def _die(self, error: BaseException) -> None:
        self._death = EngineDied(f"vLLM's engine died ({_first_line(error)}).")
        for answers in {id(a): a for _, a in self._waiting.values()}.values():
            answers.put(EngineDied(self._death.message))
        self._waiting.clear()


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
