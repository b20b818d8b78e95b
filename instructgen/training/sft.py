"""Supervised fine-tuning on one page: rows to tokens, weights, batches, and the loss.

The loss is the cross-entropy of the tokens that `encode` marks as trained (answers), times
the weight of their row; TRL's `SFTTrainer` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from instructgen.errors import ConfigError
from instructgen.plugins import suggest
from instructgen.schema.sample import Sample
from instructgen.training.callbacks import Log
from instructgen.training.encode import IGNORED, Encoded, Encoder
from instructgen.training.launch import processes
from instructgen.training.options import SftOptions
from instructgen.training.rows import Excluded, Rows, encoded
from instructgen.training.schedule import schedule, schedule_tokens
from instructgen.training.trainer import Job, Prepared, arguments, batches, ready
from instructgen.verifiers import label


def prepare(rows: Rows, encoder: Encoder, options: SftOptions, left_out: Excluded) -> Prepared:
    """The rows as supervised fine-tuning trains on them: the tokens of answers, with weights.

    Raises:
        ConfigError: an option names what the rows do not have.
    """
    known = {sample.source for sample in rows.train}
    for source in options.weights:
        if source not in known:
            raise ConfigError(
                f"weights: no row is of the source {source!r}.", suggest(source, sorted(known))
            )
    truncate = options.too_long == "truncate"
    made = encoded(rows.train, encoder, options.max_length, left_out, truncate=truncate)
    weights = [_weight(sample, options) for sample, _ in made]
    both: list[Encoded] = [row for _, row in made]
    if options.rationale:
        tasks = [t for s, _ in made if (t := _rationale(s)) is not None]
        if not tasks:
            raise ConfigError(
                "rationale is given, and no row has a label `rationale`.",
                "Import with --map label.rationale=FIELD, or leave it out.",
            )
        second = encoded(tasks, encoder, options.max_length, left_out, truncate=truncate)
        both += [row for _, row in second]
        weights += [options.rationale * _weight(s, options) for s, _ in second]

    return Prepared(
        count=len(both),
        trained=[sample for sample, _ in made],
        probes=[row.ids for row in both],
        trainer=lambda job: trainer(job, both, weights),
    )


def _weight(sample: Sample, options: SftOptions) -> float:
    weight = options.weights.get(sample.source, 1.0)
    if options.weight_score is not None:
        score = sample.score(options.weight_score)
        if score is None or score.value is None or score.value < 0:
            raise ConfigError(
                f"row {sample.id} has no score {options.weight_score!r} of 0 or more.",
                "Curate with the filter that gives it, or leave weight_score out.",
            )
        weight *= score.value
    return weight


def _rationale(sample: Sample) -> Sample | None:
    """The second task of a row: to write down its reasons (Hsieh et al. 2023, section 3.2)."""
    reasons = label(sample, "rationale")
    if not reasons:
        return None
    return replace(sample, instruction=f"[rationale] {sample.instruction}", output=reasons)


def trainer(job: Job, rows: Sequence[Encoded], weights: Sequence[float]) -> tuple[Any, int]:
    """A trainer of answers, and the supervised tokens it will train on.

    Args:
        job: what to train; its options are of `SftOptions`.
        rows: tokens with marks.
        weights: one per row; their mean over tokens is made 1.
    """
    options = job.options
    assert isinstance(options, SftOptions)
    sequences = _sequences(rows, weights, options)
    tokens = [sum(label != IGNORED for label in labels) for labels in sequences["labels"]]
    sizes = [len(labels) for labels in sequences["labels"]]
    order = (
        schedule(
            len(tokens),
            options.batch_size,
            options.seed,
            epochs=options.epochs,
            steps=options.steps,
        )
        if options.tokens is None
        else schedule_tokens(tokens, options.tokens, options.batch_size, options.seed)
    )
    data = sequences.select(order.order)
    counts = [tokens[i] for i in order.order]
    if order.last is not None and order.last < counts[-1]:
        cut = _cut(data[len(data) - 1], order.last)
        data, counts[-1] = _with(data.select(range(len(data) - 1)), [cut]), order.last
    if processes() > 1 and (missing := -len(data) % options.batch_size):
        # Accelerate fills the last step with rows of the first; these teach nothing.
        data = _with(data, [_cut(data[0], 0)] * missing)
    # Packed rows of a micro-batch become one row, whose attention is quadratic.
    shared, accumulated = batches(options, most=1 if options.packing else 4)
    args = SFTConfig(
        **arguments(job, order.steps, shared, accumulated),
        max_length=options.max_length,
        packing=options.packing,
        completion_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        shuffle_dataset=False,
        remove_unused_columns=False,
    )
    supervised, read = (
        [sum(some[at : at + options.batch_size]) for at in range(0, len(some), options.batch_size)]
        for some in (counts, [sizes[i] for i in order.order])
    )
    made = _Sft(
        model=job.model,
        args=args,
        train_dataset=data,
        processing_class=job.tokenizer,
        peft_config=job.peft,
        callbacks=[Log(job.hooks, order.steps, supervised, read)],
    )
    # TRL takes no collator of ours together with packing, but uses the one it holds.
    made.data_collator = _Collator(
        pad_token_id=job.tokenizer.pad_token_id, padding_free=options.packing
    )
    return ready(made), sum(counts)


def _sequences(rows: Sequence[Encoded], weights: Sequence[float], options: SftOptions) -> Dataset:
    columns: dict[str, list[Any]] = {
        "input_ids": [row.ids for row in rows],
        "labels": [row.labels for row in rows],
    }
    if not any(weights):
        raise ConfigError("every row has the weight 0.", "Mend weights or weight_score.")
    if len(set(weights)) > 1:
        counts = [sum(row.trained) for row in rows]
        mean = sum(w * n for w, n in zip(weights, counts, strict=True)) / max(1, sum(counts))
        columns["weights"] = [
            [w / mean] * len(row.ids) for w, row in zip(weights, rows, strict=True)
        ]
    data = Dataset.from_dict(columns)
    return pack_dataset(data, options.max_length, "bfd") if options.packing else data


def _cut(sequence: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A sequence of which only the first supervised tokens count."""
    labels, left = [], tokens
    for token in sequence["labels"]:
        counts = token != IGNORED and left > 0
        left -= counts
        labels.append(token if counts else IGNORED)
    return {**sequence, "labels": labels}


def _with(data: Dataset, rows: list[dict[str, Any]]) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets([data, Dataset.from_list(rows, features=data.features)])


class _Collator(DataCollatorForLanguageModeling):
    """TRL's, with a weight per token where rows have one."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super().torch_call(examples)
        if "weights" in examples[0]:
            parts = [torch.tensor(e["weights"], dtype=torch.float32) for e in examples]
            if self.padding_free:
                output["weights"] = torch.cat(parts)[None]
            else:
                output["weights"] = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return output


class _Sft(SFTTrainer):
    """TRL's, with weights per token and a loss that does not forget them."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        weights = inputs.pop("weights", None)
        if weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        made = model(**inputs, use_cache=False, fused_lm_head=True)
        count = made.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        # Logits at t tell of the token at t + 1.
        loss = -(made.log_probs * weights[:, 1:]).sum() / count
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, made) if return_outputs else loss
