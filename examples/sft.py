"""Supervised fine-tuning on one page: data, which tokens the loss covers, the loss, the step.

    python examples/sft.py data/clean --model smollm2 --steps 20 --out models/sft

`instructgen train sft` does the same with TRL: packing, adapters, checkpoints, several GPUs and
an evaluation before and after.
"""

import argparse
from pathlib import Path

import torch

import instructgen
from instructgen.models.loading import load_model, load_tokenizer
from instructgen.training.encode import IGNORED, Encoded, Encoder

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("data", help="dataset folder")
parser.add_argument("--model", default="smollm2", help="base model: folder, Hub name or smollm2")
parser.add_argument("--out", type=Path, default=Path("models/sft"), help="output folder")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=2e-5)
parser.add_argument("--max-length", type=int, default=512)
options = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = load_tokenizer(options.model, "eos")
model = load_model(options.model, tokenizer=tokenizer).to(device).train()

# The chat template renders a row. `labels` are set only for the tokens of the answer and its
# end-of-turn token: the loss does not cover the prompt.
encoder = Encoder(tokenizer, name=options.model)
rows = [encoder.encode(sample) for sample in instructgen.open(options.data).samples()]
rows = [r for r in rows if isinstance(r, Encoded) and len(r.ids) <= options.max_length]
order = torch.randperm(len(rows)).tolist()

optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
for step in range(options.steps):
    # A batch, padded on the right. Labels of prompt and padding tokens are ignored.
    picked = [
        rows[order[(step * options.batch_size + i) % len(rows)]] for i in range(options.batch_size)
    ]
    longest = max(len(row.ids) for row in picked)
    ids = torch.full((len(picked), longest), tokenizer.pad_token_id)
    labels = torch.full((len(picked), longest), IGNORED)
    mask = torch.zeros((len(picked), longest), dtype=torch.long)
    for i, row in enumerate(picked):
        n = len(row.ids)
        ids[i, :n], labels[i, :n], mask[i, :n] = torch.tensor(row.ids), torch.tensor(row.labels), 1
    ids, labels, mask = ids.to(device), labels.to(device), mask.to(device)

    # Cross-entropy of each answer token given all tokens before it.
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    targets = labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED
    )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * (1 - step / options.steps)
    optimizer.step()
    optimizer.zero_grad()
    tokens = int((targets != IGNORED).sum())
    print(f"step {step + 1}/{options.steps}  loss {loss.item():.4f}  {tokens} supervised tokens")

model.save_pretrained(options.out)
tokenizer.save_pretrained(options.out)
print(f"model: {options.out}")
