"""Terms of language models for the use of their output, by model name.

This module summarizes the terms that were published in 2026. Only the published terms are
authoritative, and nothing in this module is legal advice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

# The generator of rows that a model wrote whose name is unknown. Its terms are unknown too.
UNNAMED_MODEL = "unnamed model"


@dataclass(frozen=True, slots=True)
class GeneratorTerms:
    """The terms of a model for the use of its output.

    ``name`` is the name of the terms, and ``asks`` describes their conditions. ``restricted``
    means that the terms forbid some kinds of training on the model's output, or have conditions
    for models that are trained on the output. ``commercial_use`` means that the output may be
    used commercially.
    """

    name: str
    restricted: bool
    commercial_use: bool
    asks: str


def _free(name: str) -> GeneratorTerms:
    return GeneratorTerms(
        name, restricted=False, commercial_use=True, asks="no conditions on output"
    )


def _restricted(name: str, asks: str) -> GeneratorTerms:
    return GeneratorTerms(name, restricted=True, commercial_use=True, asks=asks)


def _no_competing_models(name: str, company: str) -> GeneratorTerms:
    return _restricted(
        name, f"output may not be used to develop models that compete with {company}'s"
    )


def _research(name: str) -> GeneratorTerms:
    asks = "no commercial use of the model or its output"
    return GeneratorTerms(name, restricted=True, commercial_use=False, asks=asks)


_LLAMA_NAME = "if a model trained on output is published, its name must begin with Llama"
_LLAMA_BAN = "output may not be used to improve language models other than Llama"
_SAME_RESTRICTIONS = "a model trained on output to imitate it must have the same use restrictions"

# Patterns for the last part of a path or Hub name, in lower case. The first match counts.
_BY_NAME: tuple[tuple[str, GeneratorTerms], ...] = (
    (r"gpt-oss.*", _free("Apache-2.0")),
    (r"(chat)?gpt-?[345].*|chatgpt|(text|code)-davinci.*|davinci.*|o[134](-.*)?",
     _no_competing_models("OpenAI's terms of use", "OpenAI")),
    (r"claude.*", _no_competing_models("Anthropic's terms", "Anthropic")),
    (r"gemini.*|bard", _no_competing_models("Google's generative AI terms", "Google")),
    (r"(meta-)?llama-?3[.-][1-3].*",
     _restricted("Llama 3.1 to 3.3 Community License", _LLAMA_NAME)),
    (r"(meta-)?llama-?3(-.*)?",
     _restricted("Llama 3 Community License", f"{_LLAMA_BAN}; {_LLAMA_NAME}")),
    (r"(meta-)?llama-?2.*", _restricted("Llama 2 Community License", _LLAMA_BAN)),
    (r"gemma-?4.*", _free("Apache-2.0")),
    (r"gemma.*", _restricted("Gemma Terms of Use", _SAME_RESTRICTIONS)),
    (r"qwen-(1_8b|7b|14b|72b).*",
     _restricted("Tongyi Qianwen license",
                 "output may not be used to improve other language models")),
    (r"qwen2\.5-(\w+-)?3b.*", _research("Qwen Research License")),
    (r"qwen2\.5-(\w+-)?72b.*",
     _restricted("Qwen License", 'a model trained on output must display "Built with Qwen"')),
    (r"qwen(2\.5|3).*", _free("Apache-2.0")),
    (r"mistral-7b.*|mixtral-8x(7|22)b.*", _free("Apache-2.0")),
    (r"ministral-8b.*|mistral-large-2411.*", _research("Mistral Research License")),
    (r"deepseek-r1(-zero)?|deepseek-v3-0324", _free("MIT")),
    (r"deepseek-v[23].*", _restricted("DeepSeek License", _SAME_RESTRICTIONS)),
    (r"phi-4.*", _free("MIT")),
    (r"smollm2.*", _free("Apache-2.0")),
    (r"(c4ai-)?command-r.*", _research("CC-BY-NC-4.0")),
)  # fmt: skip


@cache
def generator_terms(model: str) -> GeneratorTerms | None:
    """Return the terms of the model with this path or Hub name, or None if they are unknown."""
    # A local model is known only by the name of its folder.
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((terms for pattern, terms in _BY_NAME if re.fullmatch(pattern, name)), None)
