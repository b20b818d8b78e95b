"""What the models that write rows ask of whoever trains on them.

A summary by the model's name, of the terms as published in 2026; those rule,
and nothing here is legal advice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class GeneratorTerms:
    """The terms of a model on its output.

    ``restricted`` says that they forbid some training on it, or bind what is
    trained; ``commercial_use`` whether output may be used commercially.
    """

    name: str
    restricted: bool
    commercial_use: bool
    asks: str


def _free(name: str) -> GeneratorTerms:
    return GeneratorTerms(name, restricted=False, commercial_use=True, asks="nothing of output")


def _bound(name: str, asks: str) -> GeneratorTerms:
    return GeneratorTerms(name, restricted=True, commercial_use=True, asks=asks)


def _no_rivals(name: str, company: str) -> GeneratorTerms:
    return _bound(name, f"output may not be used to develop models that compete with {company}'s")


def _research(name: str) -> GeneratorTerms:
    asks = "no commercial use of the model and its output"
    return GeneratorTerms(name, restricted=True, commercial_use=False, asks=asks)


_LLAMA_NAME = "a model trained on output that is given away has a name that begins with Llama"
_LLAMA_BAN = "output may not be used to improve other language models than Llama"
_HANDED_ON = "a model trained on output to act like it passes on its use restrictions"

# By the last part of a path or Hub name, in any case; the first that matches is meant.
_BY_NAME: tuple[tuple[str, GeneratorTerms], ...] = (
    (r"gpt-oss.*", _free("Apache-2.0")),
    (r"(chat)?gpt-?[345].*|chatgpt|(text|code)-davinci.*|davinci.*|o[134](-.*)?",
     _no_rivals("OpenAI's terms of use", "OpenAI")),
    (r"claude.*", _no_rivals("Anthropic's terms", "Anthropic")),
    (r"gemini.*|bard", _no_rivals("Google's generative AI terms", "Google")),
    (r"(meta-)?llama-?3[.-][1-3].*", _bound("Llama 3.1 to 3.3 Community License", _LLAMA_NAME)),
    (r"(meta-)?llama-?3(-.*)?",
     _bound("Llama 3 Community License", f"{_LLAMA_BAN}; {_LLAMA_NAME}")),
    (r"(meta-)?llama-?2.*", _bound("Llama 2 Community License", _LLAMA_BAN)),
    (r"gemma-?4.*", _free("Apache-2.0")),
    (r"gemma.*", _bound("Gemma Terms of Use", _HANDED_ON)),
    (r"qwen-(1_8b|7b|14b|72b).*",
     _bound("Tongyi Qianwen licence", "output may not be used to improve other language models")),
    (r"qwen2\.5-(\w+-)?3b.*", _research("Qwen Research License")),
    (r"qwen2\.5-(\w+-)?72b.*",
     _bound("Qwen License", "a model trained on output says Built with Qwen")),
    (r"qwen(2\.5|3).*", _free("Apache-2.0")),
    (r"mistral-7b.*|mixtral-8x(7|22)b.*", _free("Apache-2.0")),
    (r"ministral-8b.*|mistral-large-2411.*", _research("Mistral Research License")),
    (r"deepseek-r1(-zero)?|deepseek-v3-0324", _free("MIT")),
    (r"deepseek-v[23].*", _bound("DeepSeek License", _HANDED_ON)),
    (r"phi-4.*", _free("MIT")),
    (r"smollm2.*", _free("Apache-2.0")),
    (r"(c4ai-)?command-r.*", _research("CC-BY-NC-4.0")),
)  # fmt: skip


@cache
def generator_terms(model: str) -> GeneratorTerms | None:
    """The terms of a model by its path or Hub name; None where nothing is known of them."""
    # Of a model that a local folder holds, the folder's name is all there is.
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((terms for form, terms in _BY_NAME if re.fullmatch(form, name)), None)
