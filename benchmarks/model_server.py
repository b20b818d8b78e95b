"""A server that imitates an OpenAI-compatible model server, to measure clients without a GPU.

    python benchmarks/model_server.py [--port 8765] [--slots 64] [--rate 50] [--log requests.jsonl]

At most ``--slots`` requests are answered at a time; the others wait in the order of their arrival.
An answer takes 0.05 s and 1 / ``--rate`` s per output token (``--rate 0``: no time). The number of
tokens is log-normal with a median of 120, and one answer in a hundred has 1,024 tokens. A client
that closes its connection frees the slot. The text depends only on the request, and follows its
JSON schema if it has one: new instructions where these are asked for, otherwise an answer. A
fraction of the instructions (``--repeat``) resembles earlier ones, as those of models do.

``GET /stats`` returns the counts and the use of the slots since ``POST /reset``.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import re
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from aiohttp import web

SEEDS = Path(__file__).resolve().parent.parent / "seeds" / "general.jsonl"
MEDIAN, MOST = 120, 1024
# One in a hundred of a log-normal distribution is 2.3263 standard deviations above the median.
SIGMA = math.log(MOST / MEDIAN) / 2.3263
PREFILL_S = 0.05
BANK = 120
_SEVERAL = re.compile(r"(\d+)\s+(?:\w+\s+)?(?:user queries|tasks|instructions)", re.IGNORECASE)
_ONE = re.compile(r"one new (?:task|instruction)", re.IGNORECASE)
_YES_NO = re.compile(r"answer yes or no|yes or no\b.*$", re.IGNORECASE)


def vocabulary() -> list[str]:
    """Return the distinct words of the included seed tasks."""
    return sorted(set(re.findall(r"[a-z]{3,}", SEEDS.read_text().lower())))


class Texts:
    """Writes random texts; equal requests get equal texts."""

    def __init__(self, repeat: float) -> None:
        self.words, self.repeat = vocabulary(), repeat
        rng = random.Random(7)
        self.bank = [self.instruction(rng, 14, repeat=False) for _ in range(BANK)]

    def text(self, rng: random.Random, tokens: int) -> str:
        """Return sentences with about this number of tokens."""
        words = rng.choices(self.words, k=max(1, int(tokens / 1.35)))
        lines = [words[at : at + 12] for at in range(0, len(words), 12)]
        return " ".join(f"{' '.join(line).capitalize()}." for line in lines)

    def instruction(self, rng: random.Random, tokens: int, *, repeat: bool = True) -> str:
        """Return an instruction, sometimes one of the bank with another word."""
        if repeat and rng.random() < self.repeat:
            words = self.bank[min(BANK - 1, int(rng.expovariate(1 / 30)))].split()
            words[rng.randrange(3, len(words))] = rng.choice(self.words)
            return " ".join(words)
        words = rng.choices(self.words, k=max(8, min(30, int(tokens / 1.35))))
        return f"{' '.join(words).capitalize()}."

    def value(self, rng: random.Random, schema: dict[str, Any], tokens: int, key: str = "") -> Any:
        """Return a value that follows a JSON schema, with about this number of tokens."""
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if "properties" in schema:
            each = tokens // max(1, len(schema["properties"]))
            return {k: self.value(rng, s, each, k) for k, s in schema["properties"].items()}
        if schema.get("type") == "array":
            count = schema.get("maxItems", 7)
            return [self.value(rng, schema["items"], tokens // count, key) for _ in range(count)]
        if schema.get("type") == "boolean":
            return rng.random() < 0.5
        if schema.get("type") in ("integer", "number"):
            return rng.randrange(10)
        if key == "input":
            return self.text(rng, min(8, tokens)) if rng.random() < 0.5 else ""
        if re.search("task|instruction|quer", key):
            return self.instruction(rng, tokens)
        return self.text(rng, tokens)

    def answer(self, body: dict[str, Any], key: bytes) -> tuple[str, int, str]:
        """Return the text of an answer, its tokens, and why it ends."""
        rng = random.Random(key)
        most = int(body.get("max_tokens") or body.get("max_completion_tokens") or MOST)
        tokens = max(4, min(MOST, round(rng.lognormvariate(math.log(MEDIAN), SIGMA))))
        prompt = body.get("prompt") or "\n".join(str(m["content"]) for m in body["messages"])
        format_ = (body.get("response_format") or {}).get("json_schema") or {}
        if schema := format_.get("schema"):
            if re.search('"(enum|const)"', json.dumps(schema)):
                tokens = 9
            text = json.dumps(self.value(rng, schema, tokens))
        elif _YES_NO.search(str(prompt)[-300:]):
            text, tokens = rng.choice(("Yes", "No")), 3
        elif several := _SEVERAL.search(str(prompt)):
            count = min(int(several[1]), 30)
            made = [self.instruction(rng, tokens // count) for _ in range(count)]
            bare = "user queries" in str(prompt)
            text = "\n".join(t if bare else f"{i}. {t}" for i, t in enumerate(made, 1))
        elif _ONE.search(str(prompt)):
            tokens = max(12, tokens // 4)
            text = self.instruction(rng, tokens)
        else:
            text = self.text(rng, tokens)
        if tokens >= min(most, MOST):
            return text[: int(len(text) * 0.9)], min(tokens, most), "length"
        return text, tokens, "stop"


class Server:
    """Answers requests with a limited number of slots, and counts them."""

    def __init__(self, slots: int, rate: float, repeat: float, log: Path | None) -> None:
        self.slots, self.rate, self.texts, self.log = slots, rate, Texts(repeat), log
        self.free = slots
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.reset()

    def reset(self) -> None:
        """Begin a new count."""
        self.arrived = self.aborted = 0
        self.bodies: Counter[str] = Counter()
        self.first: float | None = None
        self.started = time.time()
        # When each answer began and ended, and its tokens.
        self.answers: list[tuple[float, float, int]] = []

    async def take(self) -> None:
        """Wait for a free slot."""
        if self.free:
            self.free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()
            raise

    def give(self) -> None:
        """Pass the slot to the request that has waited longest."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1

    async def complete(self, request: web.Request) -> web.Response:
        """Answer a request for a completion."""
        raw = await request.read()
        if self.first is None:
            self.first, self.started = time.monotonic(), time.time()
        self.arrived += 1
        name = hashlib.sha256(raw).hexdigest()
        repeated = self.bodies[name]
        self.bodies[name] += 1
        if self.log is not None:
            with self.log.open("ab") as file:
                file.write(raw.replace(b"\n", b" ") + b"\n")
        body = json.loads(raw)
        # Without a seed, a model samples another text for the same prompt.
        key = raw if "seed" in body else raw + str(repeated).encode()
        try:
            await self.take()
            began = time.monotonic()
            try:
                text, tokens, reason = self.texts.answer(body, hashlib.sha256(key).digest())
                if self.rate:
                    await asyncio.sleep(PREFILL_S + tokens / self.rate)
            finally:
                self.give()
                self.answers.append((began, time.monotonic(), 0))
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        self.answers[-1] = (*self.answers[-1][:2], tokens)
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        choice |= (
            {"message": {"role": "assistant", "content": text}}
            if "messages" in body
            else {"text": text}
        )
        prompt = len(raw) // 4
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
        }
        kind = "chat.completion" if "messages" in body else "text_completion"
        answer = {"id": f"c-{name[:16]}-{repeated}", "object": kind, "created": int(time.time())}
        return web.json_response(
            {**answer, "model": body.get("model"), "choices": [choice], "usage": usage}
        )

    def stats(self) -> dict[str, Any]:
        """Return the counts, the use of the slots, and the number of busy slots per second."""
        if not self.answers or self.first is None:
            return {"requests": self.arrived}
        start, end = self.first, max(a[1] for a in self.answers)
        busy = [0.0] * (int(end - start) + 1)
        for began, ended, _ in self.answers:
            for second in range(int(began - start), int(ended - start) + 1):
                share = min(ended - start, second + 1) - max(began - start, second)
                busy[second] += max(0.0, share)
        total = sum(ended - began for began, ended, _ in self.answers)
        times = sorted(ended - began for began, ended, tokens in self.answers if tokens)
        return {
            "started": self.started,
            "slots": self.slots,
            "requests": self.arrived,
            "answered": len(times),
            "aborted": self.aborted,
            "same_request_again": sum(n - 1 for n in self.bodies.values()),
            "output_tokens": sum(a[2] for a in self.answers),
            "wall_s": round(end - start, 2),
            "slots_busy": round(total / self.slots / max(end - start, 1e-9), 4),
            "median_latency_s": round(times[len(times) // 2], 3) if times else None,
            "busy_per_s": [round(b, 1) for b in busy],
        }


def application(server: Server) -> web.Application:
    """Return the web application of a server."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    async def stats(_: web.Request) -> web.Response:
        return web.json_response(server.stats())

    async def reset(_: web.Request) -> web.Response:
        server.reset()
        return web.json_response({})

    app = web.Application(client_max_size=4_000_000)
    for path in ("completions", "chat/completions"):
        app.router.add_post(f"/v1/{path}", server.complete)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/stats", stats)
    app.router.add_post("/reset", reset)
    return app


def main() -> None:
    """Run the server on 127.0.0.1 until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second of an answer")
    parser.add_argument("--repeat", type=float, default=0.15)
    parser.add_argument("--log", type=Path, help="file to which the bodies of requests are added")
    args = parser.parse_args()
    server = Server(args.slots, args.rate, args.repeat, args.log)
    web.run_app(
        application(server),
        host="127.0.0.1",
        port=args.port,
        # A client that goes away cancels its request.
        handler_cancellation=True,
        print=None,
        backlog=2048,
        access_log=None,
    )


if __name__ == "__main__":
    main()
