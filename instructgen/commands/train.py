"""The command train: a dataset and a model in, a better model out, with what it took."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import orjson

from instructgen.commands.derive import name_of
from instructgen.config import load_table
from instructgen.errors import ConfigError, InputError, StorageError
from instructgen.models.folders import default_model, model_digest
from instructgen.plugins import classes, provenance, suggest
from instructgen.reports.cards import model_card
from instructgen.schema.progress import Watch
from instructgen.schema.statistics import Contents
from instructgen.store import (
    ModelRun,
    digest_of,
    read_log,
    root_of,
    step_of,
    storage,
    training,
)
from instructgen.training.options import (
    ONLINE,
    OPTIONS,
    PAIRS,
    OnlineOptions,
    PpoOptions,
    SftOptions,
    Trainer,
    TrainOptions,
)
from instructgen.versions import OF_MODELS, versions

if TYPE_CHECKING:
    from instructgen.training.callbacks import Pace
    from instructgen.training.encode import Encoder
    from instructgen.training.online import Tasks
    from instructgen.training.rows import Excluded, Rows
    from instructgen.training.trainer import Prepared

_PROBES = 4
_PROBE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run came to; ``facts`` is what run.json says."""

    out: Path
    method: str
    facts: dict[str, Any]
    messages: tuple[str, ...]
    card: str
    unchanged: bool = False


def train(
    method: str,
    data: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    recipe: str | Path | None = None,
    reward: Sequence[str] = (),
    held_out: str | Path | None = None,
    watch: Watch | None = None,
    **options: Any,
) -> TrainResult:
    """Train a model on a dataset, or go on with such a run.

    Args:
        method: ``sft``, ``reward``, ``dpo``, ``kto``, ``grpo``, ``rloo`` or ``ppo``.
        data: a dataset or run folder, or a file that import can read: instructions for
            sft, grpo, rloo and ppo, preferences for reward, dpo and kto.
        out: the model's folder. One that holds this run is resumed; a finished run is
            left as it is.
        model: what to begin with: a folder, a Hub name, or ``smollm2``.
        recipe: a TOML file whose table [train] holds options.
        reward: for grpo, rloo and ppo: reward models and ``verifiers:NAME,NAME``.
        held_out: rows to evaluate on before and after; without it the split
            ``validation``, or rows kept from training.
        watch: called after each step.
        options: of the method; see `instructgen.training.options`.

    Raises:
        InputError: the dataset is bad or of the wrong kind.
        ConfigError: an option, the recipe or the model is bad, or packages are missing.
        RunError: the folder holds something else, or is in use.
        StorageError: the disk refuses; the run can be resumed.
        TrainingError: the loss is no number, or the saved model is not the trained one.
    """
    chosen, settings = check(method, data, reward, recipe, options)
    if held_out is not None:
        _check_inputs(chosen, Path(held_out))
    source, folder = Path(data), Path(out)
    from instructgen.training.policy import length_for, needs_packages

    needs_packages()
    _check_strategy(chosen, settings)
    base = default_model() if model is None else model
    length = length_for(base, settings.max_length)
    settings = settings.model_copy(update={"max_length": length})
    asked = _asked(chosen, base, source, tuple(reward), held_out, settings)
    from instructgen.training.launch import is_main

    with training(folder, asked) if is_main() else nullcontext(ModelRun(folder, asked)) as run:
        facts = run.finished()
        unchanged = facts is not None
        if facts is None:
            job = _Training(chosen, settings, source, base, tuple(reward), held_out, run, watch)
            facts = job.run()
        card = str(folder / "README.md")
        return TrainResult(folder, chosen, facts, tuple(run.messages), card, unchanged)


def _asked(
    method: Trainer,
    base: str,
    source: Path,
    reward: tuple[str, ...],
    held_out: str | Path | None,
    settings: TrainOptions,
) -> dict[str, Any]:
    """What decides the trained model: run.json begins with it."""
    from instructgen.training.rewards import verifiers_in

    measured = None if held_out is None else Path(held_out)
    # A file's format need not be named: any that is installed may be the one.
    read = any(path is not None and path.is_file() for path in (source, measured))
    formats = classes("sources").values() if read else ()
    return {
        "command": f"train {method}",
        "model": {"name": base, "digest": model_digest(base)},
        "data": {"name": name_of(source), "sha256": digest_of(source)},
        "reward": [_reward_identity(r) for r in reward],
        "held_out": None
        if measured is None
        else {"name": name_of(measured), "sha256": digest_of(measured)},
        "options": settings.model_dump(mode="json"),
        **provenance(sources=formats, verifiers=verifiers_in(reward)),
    }


def check(
    method: str,
    data: str | Path | None,
    reward: Sequence[str],
    recipe: str | Path | None,
    options: Mapping[str, Any],
) -> tuple[Trainer, TrainOptions]:
    """The method and its options, checked as far as that goes without a model.

    Without ``data`` what it will be trained on is not looked at.

    Raises:
        InputError: the dataset is not there, or of the wrong kind.
        ConfigError: the method, an option or the recipe is bad.
    """
    if method not in OPTIONS:
        raise ConfigError(f"{method!r} is no way to train.", suggest(method, list(OPTIONS)))
    chosen: Trainer = next(m for m in get_args(Trainer) if m == method)
    settings = load_table(
        OPTIONS[chosen], None if recipe is None else str(recipe), "train", dict(options)
    )
    if (chosen in ONLINE) != bool(reward):
        hint = (
            "Give --reward models/rm, or --reward verifiers:ifeval,math."
            if chosen in ONLINE
            else "Leave --reward out."
        )
        raise ConfigError(
            f"train {method} {'needs a' if chosen in ONLINE else 'has no'} reward.", hint
        )
    if data is not None:
        _check_inputs(chosen, Path(data))
    return chosen, settings


def masks(
    data: str | Path,
    *,
    count: int,
    model: str | None = None,
    recipe: str | Path | None = None,
    **options: Any,
) -> list[list[tuple[str, bool]]]:
    """The first rows as supervised fine-tuning sees them: pieces of text, and whether trained.

    Raises:
        InputError: the dataset is bad.
        ConfigError: an option or the model is bad.
    """
    settings = load_table(SftOptions, None if recipe is None else str(recipe), "train", options)
    _check_inputs("sft", Path(data))
    from instructgen.models.loading import load_tokenizer
    from instructgen.training.encode import Encoder
    from instructgen.training.policy import length_for, needs_packages
    from instructgen.training.rows import Excluded, encoded, rows_for

    needs_packages()
    base = default_model() if model is None else model
    tokenizer = load_tokenizer(base, settings.pad_token)
    encoder = Encoder(tokenizer, settings.format, base)
    rows, left_out = rows_for(Path(data), None, 0, lambda _: True), Excluded()
    truncate, longest = settings.too_long == "truncate", length_for(base, settings.max_length)
    shown: list[list[tuple[str, bool]]] = []
    for sample in rows.train:
        if len(shown) == count:
            break
        for _, row in encoded([sample], encoder, longest, left_out, truncate=truncate):
            pieces: list[tuple[list[int], bool]] = []
            for token, trained in zip(row.ids, row.trained, strict=True):
                if pieces and pieces[-1][1] == trained:
                    pieces[-1][0].append(token)
                else:
                    pieces.append(([token], trained))
            shown.append([(tokenizer.decode(ids), trained) for ids, trained in pieces])
    if not shown:
        reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.counts().items())
        raise InputError(
            f"no row can be trained on: {reasons}.",
            path=Path(data),
            hint="See max_length and the rows' answers.",
        )
    return shown


def _check_inputs(method: Trainer, source: Path) -> None:
    from instructgen.training.rows import shape_at

    if not source.exists():
        raise InputError("no such dataset.", path=source, hint="Check the path.")
    wanted = "preferences" if method in PAIRS else "instructions"
    if (shape := shape_at(source)) != wanted:
        hint = (
            "Run: instructgen import --as preferences, or instructgen prefer."
            if wanted == "preferences"
            else "Train reward, dpo or kto on it."
        )
        raise InputError(
            f"it holds {shape}; train {method} wants {wanted}.", path=source, hint=hint
        )


def _check_strategy(method: Trainer, options: TrainOptions) -> None:
    """Refuse what would run as something else without a word."""
    import os

    import torch

    from instructgen.training.launch import needs_gpus, processes

    if method == "ppo" and processes() > 1:
        raise ConfigError("ppo trains in one process.", "Leave --processes out.")
    if isinstance(options, OnlineOptions) and options.rollouts == "vllm":
        if torch.cuda.is_available() and method == "ppo":
            raise ConfigError("On a GPU ppo samples by transformers.", "Leave rollouts out.")
        if not torch.cuda.is_available() and processes() > 1:
            raise ConfigError("vLLM on a CPU serves one process.", "Leave --processes out.")
    if torch.cuda.is_available():
        return
    for name, variable in (("fsdp", "ACCELERATE_USE_FSDP"), ("ZeRO", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise needs_gpus(name)


def _reward_identity(spec: str) -> dict[str, str]:
    if spec.startswith("verifiers:"):
        return {"name": spec}
    return {"name": name_of(Path(spec)), "digest": model_digest(spec)}


class _Training:
    """One run, from rows to files."""

    def __init__(
        self,
        method: Trainer,
        options: TrainOptions,
        source: Path,
        base: str,
        reward: Sequence[str],
        held_out: str | Path | None,
        run: ModelRun,
        watch: Watch | None,
    ) -> None:
        self.method, self.options, self.source, self.base = method, options, source, base
        self.reward, self.run_folder, self.watch = reward, run, watch
        self.held_out = None if held_out is None else Path(held_out)
        self.head: Any = "reward" if method == "reward" else "causal"
        self.pace: Pace | None = None
        self.tasks: Tasks | None = None

    def _told(self, pace: Pace) -> None:
        self.pace = pace
        if self.watch is not None:
            self.watch(pace.progress())

    def run(self) -> dict[str, Any]:
        """Train, save, check and evaluate; what run.json says of it."""
        from instructgen.models.loading import load_tokenizer
        from instructgen.training import policy
        from instructgen.training.callbacks import Hooks
        from instructgen.training.encode import Encoder
        from instructgen.training.launch import is_main
        from instructgen.training.rows import Excluded
        from instructgen.training.trainer import Job

        options, run = self.options, self.run_folder
        began = time.monotonic()
        tokenizer = load_tokenizer(self.base, options.pad_token)
        encoder = Encoder(tokenizer, options.format, self.base)
        rows, left_out = self._rows(encoder), Excluded()
        prepared = self._prepared(rows, encoder, left_out)
        model = self._model(tokenizer)
        policy.stop_at(model, encoder.end_id)
        if is_main():
            # The others may come here before the folder is made, and write nothing.
            _check_space(model, options, run.folder)
        probes = [ids[:_PROBE_TOKENS] for ids in prepared.probes[:_PROBES]]
        base_outputs = policy.outputs(model, probes)
        job = Job(
            method=self.method,
            options=options,
            model=model,
            tokenizer=tokenizer,
            checkpoints=run.checkpoints,
            tensorboard=run.folder / "tensorboard",
            peft=policy.peft_of(options, model, self.head),
            hooks=Hooks(run.log, run.seal, self._told),
        )
        with storage(run.folder), _weights_written(run.folder):
            trainer, tokens = prepared.trainer(job)
            trained = self._fitted(trainer, left_out)
            with run.exporting() if is_main() else nullcontext(run.folder / ".export") as export:
                trained["reload"] = self._export(trainer, tokenizer, export, probes, base_outputs)
        if not is_main():
            return {}
        trained |= {"steps": trainer.state.global_step, "supervised_tokens": tokens}
        del trainer, job, model
        return self._finished(rows, prepared, left_out, trained, began)

    def _rows(self, encoder: Encoder) -> Rows:
        """The rows to train on, and those held out."""
        from instructgen.training.rows import rows_for
        from instructgen.training.trainer import fits

        options = self.options
        rows = rows_for(
            self.source,
            self.held_out,
            options.held_out_rows,
            lambda sample: fits(sample, encoder, options),
        )
        if len(rows.held_out) < (options.held_out_rows or 0) or (
            self.held_out is not None and not rows.held_out
        ):
            self.run_folder.messages.append(
                f"{len(rows.held_out):,} rows are held out and measured: no more can be."
            )
        return rows

    def _prepared(self, rows: Rows, encoder: Encoder, left_out: Excluded) -> Prepared:
        """The rows as the method trains on them: see `sft`, `preference` and `online`."""
        from instructgen.training import online, preference, sft

        options = self.options
        if isinstance(options, SftOptions):
            prepared = sft.prepare(rows, encoder, options, left_out)
        elif isinstance(options, OnlineOptions):
            self.tasks = online.prepare_tasks(rows, encoder, options, left_out, self.reward)
            prepared = online.prepare(self.method, self.tasks, options)
        else:
            prepared = preference.prepare(self.method, rows, encoder, options, left_out)
        if not prepared.count:
            reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.counts().items())
            raise InputError(
                f"no row can be trained on: {reasons or 'all are held out'}.",
                path=self.source,
                hint="See max_length, held_out_rows and the rows' answers.",
            )
        return prepared

    def _model(self, tokenizer: Any) -> Any:
        """The base model; what is new in it, a head or adapters, comes from the seed."""
        import torch
        from transformers import set_seed

        from instructgen.models.loading import load_model

        options, dtype = self.options, self.options.dtype
        if dtype == "auto":
            adapters = options.peft != "none"
            dtype = "bfloat16" if torch.cuda.is_available() and adapters else "float32"
        set_seed(options.seed)
        model = load_model(
            self.base,
            self.head,
            tokenizer=tokenizer,
            dtype=dtype,
            quantized=options.peft == "qlora",
            new_head=True,
        )
        if isinstance(getattr(model, "peft_config", None), dict):
            raise ConfigError(
                f"--model {self.base} is an adapter that cannot be merged.",
                "Train on its base, or give a merged model.",
            )
        return model

    def _fitted(self, trainer: Any, left_out: Excluded) -> dict[str, Any]:
        """Train from the newest complete checkpoint; seconds, and whether there was one."""
        from instructgen.training.launch import is_main
        from instructgen.training.trainer import fit

        run = self.run_folder
        # The main process clears away what is not complete; the others look after it.
        checkpoint = run.newest() if is_main() else None
        trainer.accelerator.wait_for_everyone()
        checkpoint = checkpoint if is_main() else run.newest()
        if is_main():
            run.forget_after(0 if checkpoint is None else step_of(checkpoint))
            lines = (orjson.dumps(row) + b"\n" for row in left_out.rows)
            run.write("left_out.jsonl", b"".join(lines))
        if checkpoint is not None:
            run.messages.append(f"resumed from {checkpoint.name}.")
        began = time.monotonic()
        fit(trainer, checkpoint)
        return {"seconds": time.monotonic() - began, "resumed": checkpoint is not None}

    def _finished(
        self,
        rows: Rows,
        prepared: Prepared,
        left_out: Excluded,
        trained: dict[str, Any],
        began: float,
    ) -> dict[str, Any]:
        """Evaluate, and write down what the run came to."""
        from instructgen.evaluation.before_after import before_after
        from instructgen.evaluation.plots import log_plot
        from instructgen.training.rows import digest_of_rows

        options, run, seconds = self.options, self.run_folder, trained["seconds"]
        contents = Contents()
        contents.add(prepared.trained)
        facts = {
            "base": self.base,
            # Of a model trained here, what it began as in the end: whose terms go with it.
            "root": root_of(self.base),
            "method": self.method,
            "rows": {
                "train": len(prepared.trained),
                "sha256": digest_of_rows(prepared.trained),
                "left_out": left_out.counts(),
                "held_out": len(rows.held_out),
                "held_out_from": rows.held_out_from,
            },
            **trained,
            "seconds": round(seconds, 1),
            "tokens_per_s": round(self.pace.tokens / seconds, 1) if self.pace else None,
            "evaluation": before_after(
                self.method, options, rows, self.tasks, self.base, str(run.folder)
            )
            if options.evaluate and rows.held_out
            else None,
            "licenses": contents.licenses,
            "terms": {
                "licenses": contents.licenses,
                "generators": contents.generators,
                "attributions": contents.attributions,
            },
            "versions": versions(OF_MODELS),
        }
        if trained["reload"]["moved"] == 0:
            run.messages.append("the saved model equals the one it began as.")
        card = model_card(
            name_of(run.folder),
            name_of(self.source),
            contents,
            {**facts, "options": options.model_dump(mode="json")},
        )
        run.write("README.md", card.encode())
        run.write("log.png", log_plot(read_log(run.folder)))
        facts["total_seconds"] = round(time.monotonic() - began, 1)
        run.finish(facts)
        return run.finished() or {}

    def _export(
        self, trainer: Any, tokenizer: Any, export: Path, probes: Any, base_outputs: Any
    ) -> dict[str, float]:
        """Save the model, whole and as an adapter, and read it back."""
        import torch

        from instructgen.models.loading import load_model
        from instructgen.training import policy
        from instructgen.training.launch import is_main
        from instructgen.training.trainer import trainer_shards

        adapters = self.options.peft != "none"
        saved = export / "adapter" if adapters else export
        trained = policy.outputs(trainer.accelerator.unwrap_model(trainer.model), probes)
        trainer.save_model(str(saved))
        if not is_main():
            return {}
        for junk in ("training_args.bin", "README.md"):
            (saved / junk).unlink(missing_ok=True)
        if adapters:
            merged = load_model(str(saved), self.head, tokenizer=tokenizer)
            if hasattr(merged, "peft_config"):
                shutil.copytree(saved, export, dirs_exist_ok=True)
            else:
                merged.save_pretrained(export)
            del merged
            for file in saved.iterdir():
                if not file.name.startswith("adapter_"):
                    file.unlink()
        tokenizer.save_pretrained(export)
        reloaded = load_model(str(export), self.head, tokenizer=tokenizer)
        return policy.check_reload(
            trained,
            policy.outputs(reloaded, probes),
            base_outputs,
            precise=trainer.model.dtype == torch.float32,
            # Of weights in shards, what one process holds is not the model.
            rough=self.options.peft == "qlora" or trainer_shards(trainer),
        )


@contextmanager
def _weights_written(folder: Path) -> Iterator[None]:
    """Turn the refusals of the disk, as the libraries that write weights say them, into ours."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        said = str(error)
        if "I/O error" not in said and "PytorchStreamWriter failed" not in said:
            raise
        raise StorageError(
            f"{folder}: weights cannot be written ({said.splitlines()[0][:120]}).",
            "Free space; the same command goes on from here.",
        ) from error


def _check_space(model: Any, options: TrainOptions, folder: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        ConfigError: less space is free than two checkpoints and the model need.
    """
    weights = sum(p.numel() for p in model.parameters()) * 4
    share = 0.05 if options.peft != "none" else 1.0
    # A checkpoint holds weights and two moments of each; ppo's two models, whole.
    two = isinstance(options, PpoOptions)
    needed = int(weights * (1 + 2 * 3 * share * (1 + two) + (4 if two else 0)))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder}: {free / 1e9:.1f} GB are free, and training needs about "
            f"{needed / 1e9:.1f} GB for checkpoints and the model.",
            "Free space, or give another --out.",
        )
