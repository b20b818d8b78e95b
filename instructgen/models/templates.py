"""Checks the chat template of a model before it is used: a template is a program.

A template in a model folder may loop for hours, or double a text until the memory is full, and it
is rendered in the process that has all the data. So a process with limits renders it first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from instructgen.errors import ConfigError
from instructgen.models.limited import succeeds

_SECONDS, _MEMORY = 10, 2**29
_PROGRAM = """
import sys
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
def fail(*_):
    raise ValueError
world = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
)
world.globals.update(raise_exception=fail, strftime_now=lambda _: "")
talk = [dict(role=role, content="Say it.") for role in ("system", *("user", "assistant") * 3)]
try:
    template = world.from_string(sys.stdin.read())
    for messages in (talk, talk[1:], talk[1:2]):
        template.render(messages=messages, tools=None, add_generation_prompt=True, bos_token="")
except MemoryError:
    sys.exit(1)
except Exception:
    # Whoever uses the template reports what is wrong with it.
    pass
"""


def check_template(tokenizer: Any, name: str) -> None:
    """Render each chat template of a tokenizer in a process with limits.

    Args:
        tokenizer: the tokenizer, which may have no template, one, or several by name.
        name: the name of the model, for the message.

    Raises:
        ConfigError: a template needs too much time or memory.
    """
    templates = tokenizer.chat_template or {}
    for text in templates.values() if isinstance(templates, dict) else [templates]:
        if not _ends(text):
            raise ConfigError(
                f"{name}: the chat template of the model does not end within {_SECONDS} seconds "
                f"and {_MEMORY >> 20} MiB for a short conversation.",
                "Use another model, or correct its chat template.",
            )


@lru_cache(maxsize=64)
def _ends(template: str) -> bool:
    data = template.encode("utf-8", "replace")
    return succeeds(_PROGRAM, data, seconds=_SECONDS, memory=_MEMORY)
