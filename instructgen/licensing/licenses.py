"""Licences of rows: SPDX expressions checked, combined, and what they oblige.

The terms below are a summary for the licences that datasets of this field
carry, and for the models that write them; the licence's own text rules, and
nothing here is legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from instructgen.errors import ConfigError
from instructgen.licensing.model_terms import generator_terms


@dataclass(frozen=True, slots=True)
class Terms:
    """What a licence asks of whoever shares a dataset under it."""

    attribution: bool
    share_alike: bool
    commercial_use: bool


_OPEN = Terms(attribution=False, share_alike=False, commercial_use=True)
_CREDIT = Terms(attribution=True, share_alike=False, commercial_use=True)
_SHARE = Terms(attribution=True, share_alike=True, commercial_use=True)
_NC = Terms(attribution=True, share_alike=False, commercial_use=False)
_NC_SHARE = Terms(attribution=True, share_alike=True, commercial_use=False)
TERMS: dict[str, Terms] = {
    "CC0-1.0": _OPEN,
    "Unlicense": _OPEN,
    "PDDL-1.0": _OPEN,
    "MIT": _CREDIT,
    "Apache-2.0": _CREDIT,
    "BSD-2-Clause": _CREDIT,
    "BSD-3-Clause": _CREDIT,
    "ISC": _CREDIT,
    "CC-BY-2.0": _CREDIT,
    "CC-BY-2.5": _CREDIT,
    "CC-BY-3.0": _CREDIT,
    "CC-BY-4.0": _CREDIT,
    "ODC-By-1.0": _CREDIT,
    "CDLA-Permissive-1.0": _CREDIT,
    "CDLA-Permissive-2.0": _CREDIT,
    "CC-BY-SA-2.0": _SHARE,
    "CC-BY-SA-2.5": _SHARE,
    "CC-BY-SA-3.0": _SHARE,
    "CC-BY-SA-4.0": _SHARE,
    "ODbL-1.0": _SHARE,
    "CDLA-Sharing-1.0": _SHARE,
    "GPL-2.0-only": _SHARE,
    "GPL-3.0-only": _SHARE,
    "GPL-3.0-or-later": _SHARE,
    "AGPL-3.0-only": _SHARE,
    "CC-BY-NC-2.0": _NC,
    "CC-BY-NC-3.0": _NC,
    "CC-BY-NC-4.0": _NC,
    "CC-BY-NC-SA-3.0": _NC_SHARE,
    "CC-BY-NC-SA-4.0": _NC_SHARE,
}


_FREE = frozenset({"CC0-1.0", "Unlicense", "PDDL-1.0"})


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


@cache
def terms(expression: str) -> Terms | None:
    """What an expression asks: of an AND all, of an OR the least; None where one is unknown."""
    return _terms(_parse(expression)) if expression else None


def _terms(tree: Any) -> Terms | None:
    if tree.isliteral:
        return TERMS.get(str(tree.render()))
    known = [_terms(part) for part in tree.args]
    if isinstance(tree, _licensing().OR):
        return min((t for t in known if t is not None), key=_freedom, default=None)
    if None in known:
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
    return _freedom(terms(expression))


def _freedom(known: Terms | None) -> int:
    if known is None:
        return 4
    if not known.commercial_use:
        return 3
    return 2 if known.share_alike else int(known.attribution)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What every row of a dataset has to allow.

    ``commercial-use`` wants licences known to allow it, and no model whose terms
    are known to forbid it. ``permissive`` wants in addition no sharing alike, and
    only models known to ask nothing of their output. Anything else is a list of
    the licences allowed.
    """

    name: str
    allowed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, text: str) -> Requirement:
        """``commercial-use``, ``permissive``, or licences separated by commas.

        Raises:
            ConfigError: one of them is no SPDX licence.
        """
        if text in ("commercial-use", "permissive"):
            return cls(text)
        names = [name.strip() for name in text.split(",") if name.strip()]
        if not names:
            raise ConfigError(
                "--require is empty.", "Use commercial-use, permissive, or a list of licences."
            )
        return cls(text, frozenset(check_licence(name) for name in names))

    def objection(self, license: str, generators: Iterable[str]) -> tuple[str, str] | None:
        """Why a row under this licence and of these models fails: a code and a sentence."""
        if self.allowed:
            if _granted(_parse(license), self.allowed) if license else False:
                return None
            return "licence_not_listed", f"{license or 'no licence'} is not among {self.name}"
        known = terms(license)
        if known is None:
            return "unknown_licence", f"the terms of {license or 'no licence'} are not known here"
        if not known.commercial_use:
            return "non_commercial", f"{license} forbids commercial use"
        if self.name == "permissive" and known.share_alike:
            return "share_alike", f"{license} asks to share alike"
        for model in generators:
            asked = generator_terms(model)
            if asked is None:
                if self.name == "permissive":
                    return "unknown_generator", f"the terms of {model} are not known here"
            elif not asked.commercial_use or (self.name == "permissive" and asked.restricted):
                return "generator_terms", f"{model}, {asked.name}: {asked.asks}"
        return None


def _granted(tree: Any, allowed: frozenset[str]) -> bool:
    """Whether licences that are allowed suffice: all parts of an AND, any of an OR."""
    if tree.isliteral:
        return str(tree.render()) in allowed
    some = [_granted(part, allowed) for part in tree.args]
    return any(some) if isinstance(tree, _licensing().OR) else all(some)


def obligations(
    licenses: Mapping[str, int], generators: Mapping[str, int], attributions: Mapping[str, int]
) -> list[str]:
    """What a dataset of these rows obliges and forbids, one sentence each.

    Args:
        licenses: rows by SPDX expression.
        generators: rows by the model whose terms apply.
        attributions: rows by the credit they want.
    """
    known = {name: terms(name) for name in licenses}

    def of(names: Iterable[str]) -> str:
        return ", ".join(f"{name} ({licenses[name]:,} rows)" for name in names)

    credit = [n for n, t in known.items() if t and t.attribution]
    share = [n for n, t in known.items() if t and t.share_alike]
    barred = [n for n, t in known.items() if t and not t.commercial_use]
    unknown = [n for n, t in known.items() if t is None]
    said = []
    if credit:
        said.append(f"Give credit, and keep the licence's text or a link to it: {of(credit)}.")
        said += [f"Credit for {rows:,} rows: {text}" for text, rows in attributions.items()]
    if share:
        said.append(f"Share what you make of these rows under the same licence: {of(share)}.")
    if barred:
        said.append(f"No commercial use of these rows, nor of what is made of them: {of(barred)}.")
    if {n for n in share if terms(n) != _NC_SHARE} and barred:
        said.append(
            "A work that mixes these rows into one text cannot satisfy both: "
            f"{', '.join(share)} wants its own terms kept, {', '.join(barred)} forbids "
            "commercial use. Keep them as rows, each under its own licence."
        )
    if unknown:
        said.append(f"Terms not known here, read them: {of(unknown)}.")
    for model, rows in generators.items():
        asked = generator_terms(model)
        if asked is None:
            said.append(f"{model} wrote, or led to, {rows:,} rows; its terms are not known here.")
        elif asked.restricted:
            said.append(f"{model} wrote, or led to, {rows:,} rows; {asked.name}: {asked.asks}.")
    return said or ["Nothing: the rows are free of conditions known here."]


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
