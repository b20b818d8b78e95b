"""The Self-Instruct loop on one page: prompt, completions, ROUGE-L filter, pool.

    python examples/self_instruct_loop.py                      # echo engine, without a model
    python examples/self_instruct_loop.py --model smollm2      # the included model, on a CPU

`instructgen generate` does the same with a journal, resume, instances, licenses and 24 filters.
Source: Self-Instruct (2212.10560), section 2.2.
"""

import argparse
import random
import re

from instructgen.engines import Request, Sampling, ask
from instructgen.generation.seed_pool import load_seeds
from instructgen.plugins import find
from instructgen.resources import shipped
from instructgen.similarity import RougeLIndex

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="folder, Hub name or smollm2; default: the echo engine")
parser.add_argument("--target", type=int, default=10, help="number of new instructions")
parser.add_argument("--seed", type=int, default=0, help="random seed")
options = parser.parse_args()

# The pool starts with human-written tasks; accepted instructions join it.
seeds, _ = load_seeds([shipped("seeds") / "general.jsonl"])
human = [seed.instruction for seed in seeds if len(seed.instruction.split()) <= 30]
machine: list[str] = []

# An instruction is new if its ROUGE-L to every earlier one is at most 0.7.
novelty = RougeLIndex(0.7)
novelty.add(human)

engine = find("engines", "vllm" if options.model else "echo")(model=options.model or "")
sampling = Sampling(temperature=0.7, top_p=0.5, presence_penalty=2.0, max_tokens=128)
rng = random.Random(options.seed)
candidates = 0

while len(machine) < options.target and candidates < 50 * options.target:
    # Eight demonstrations: up to two generated instructions, and human-written ones.
    requests = []
    for _ in range(8):
        shown = rng.sample(machine, min(2, len(machine)))
        shown += rng.sample(human, 8 - len(shown))
        rng.shuffle(shown)
        listed = "\n".join(f"{n}. {text}" for n, text in enumerate(shown, start=1))
        prompt = f"Come up with a series of tasks:\n\n{listed}\n9."
        requests.append(Request(prompt, sampling).with_seed(rng.getrandbits(31)))

    # Completions arrive in any order. They are read in the order of the requests, so that the
    # same seed gives the same pool.
    completions = dict(ask(engine, requests))
    for number in range(len(requests)):
        text = completions[number].text
        for instruction in re.split(r"\n\s*\d+\.", text)[:7]:
            instruction = re.sub(r"^\d+\.", "", " ".join(instruction.split())).strip()
            candidates += 1
            if len(instruction.split()) < 4:
                continue
            if novelty.nearest([instruction])[0] is None:
                novelty.add([instruction])
                machine.append(instruction)

engine.close()
for instruction in machine[: options.target]:
    print(f"- {instruction}")
print(f"{len(machine)} of {candidates} candidates accepted")
