"""Licences of rows: SPDX expressions checked, combined, and what they oblige.

The terms below are a summary for the licences that datasets of this field
carry; the licence's own text rules, and nothing here is legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from instructgen.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Terms:
    """What a licence asks of whoever shares a dataset under it."""

    attribution: bool
    share_alike: bool
    commercial_use: bool


TERMS: dict[str, Terms] = {
    "CC0-1.0": Terms(attribution=False, share_alike=False, commercial_use=True),
    "Unlicense": Terms(attribution=False, share_alike=False, commercial_use=True),
    "MIT": Terms(attribution=True, share_alike=False, commercial_use=True),
    "Apache-2.0": Terms(attribution=True, share_alike=False, commercial_use=True),
    "BSD-3-Clause": Terms(attribution=True, share_alike=False, commercial_use=True),
    "CC-BY-3.0": Terms(attribution=True, share_alike=False, commercial_use=True),
    "CC-BY-4.0": Terms(attribution=True, share_alike=False, commercial_use=True),
    "ODC-By-1.0": Terms(attribution=True, share_alike=False, commercial_use=True),
    "CC-BY-SA-3.0": Terms(attribution=True, share_alike=True, commercial_use=True),
    "CC-BY-SA-4.0": Terms(attribution=True, share_alike=True, commercial_use=True),
    "ODbL-1.0": Terms(attribution=True, share_alike=True, commercial_use=True),
    "CC-BY-NC-4.0": Terms(attribution=True, share_alike=False, commercial_use=False),
    "CC-BY-NC-SA-4.0": Terms(attribution=True, share_alike=True, commercial_use=False),
}


_FREE = frozenset({"CC0-1.0", "Unlicense"})


@cache
def check_licence(expression: str) -> str:
    """The expression in SPDX's own spelling.

    Raises:
        ConfigError: it is no SPDX expression; the message says what is unknown.
    """
    return str(_parse(expression).render())


def combine(expressions: Iterable[str]) -> str:
    """The licence of a row made from rows under these licences: all of them at once.

    Dedications to the public domain ask nothing and drop out where another
    licence stands.

    Raises:
        ConfigError: one of them is no SPDX expression.
    """
    return _combine(frozenset(e for e in expressions if e))


@cache
def _combine(expressions: frozenset[str]) -> str:
    parts = {part for e in expressions for part in _conjuncts(e)}
    asking = sorted(parts - _FREE) or sorted(parts)[:1]
    return " AND ".join(f"({p})" if " OR " in p and len(asking) > 1 else p for p in asking)


def _conjuncts(expression: str) -> list[str]:
    """The parts that an expression joins by AND; one that joins by OR is one part."""
    tree = _parse(expression)
    parts = tree.args if isinstance(tree, _licensing().AND) else [tree]
    return [str(part.render()) for part in parts]


def terms(expression: str) -> Terms | None:
    """What an expression of licences joined by AND asks; None when one of them is unknown."""
    known = [TERMS.get(part) for part in _conjuncts(expression)] if expression else []
    if not known or None in known:
        return None
    return Terms(
        attribution=any(t.attribution for t in known if t),
        share_alike=any(t.share_alike for t in known if t),
        commercial_use=all(t.commercial_use for t in known if t),
    )


def freedom(expression: str) -> int:
    """How much a licence asks, for choosing between copies: 0 nothing, 4 not known.

    1 attribution, 2 to share alike, 3 no commercial use.
    """
    known = terms(expression)
    if known is None:
        return 4
    if not known.commercial_use:
        return 3
    return 2 if known.share_alike else int(known.attribution)


def _parse(expression: str) -> Any:
    from license_expression import ExpressionError

    hint = "Use an SPDX identifier such as CC-BY-4.0, or LicenseRef-NAME for one that has none."
    try:
        parsed = _licensing().parse(expression)
        unknown = _licensing().unknown_license_keys(parsed)
    except ExpressionError as error:
        raise ConfigError(f"{expression!r} is no SPDX expression.", hint) from error
    unknown = [key for key in unknown if not key.lower().startswith("licenseref-")]
    if parsed is None or unknown:
        raise ConfigError(
            f"{', '.join(map(repr, unknown)) or repr(expression)} is no SPDX licence.", hint
        )
    return parsed


@cache
def _licensing() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()
