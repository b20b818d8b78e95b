"""Validate and combine the licenses of rows (SPDX expressions), and list their obligations.

`TERMS` summarizes the licenses that are common for instruction datasets. Only the license texts
themselves are authoritative, and nothing in this module is legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from instructgen.errors import ConfigError
from instructgen.licensing.model_terms import generator_terms


@dataclass(frozen=True, slots=True)
class Terms:
    """The conditions of a license for sharing and using a dataset."""

    attribution: bool
    share_alike: bool
    commercial_use: bool


_OPEN = Terms(attribution=False, share_alike=False, commercial_use=True)
_ATTRIBUTION = Terms(attribution=True, share_alike=False, commercial_use=True)
_SHARE_ALIKE = Terms(attribution=True, share_alike=True, commercial_use=True)
_NC = Terms(attribution=True, share_alike=False, commercial_use=False)
_NC_SHARE_ALIKE = Terms(attribution=True, share_alike=True, commercial_use=False)
TERMS: dict[str, Terms] = {
    "CC0-1.0": _OPEN,
    "Unlicense": _OPEN,
    "PDDL-1.0": _OPEN,
    "MIT": _ATTRIBUTION,
    "Apache-2.0": _ATTRIBUTION,
    "BSD-2-Clause": _ATTRIBUTION,
    "BSD-3-Clause": _ATTRIBUTION,
    "ISC": _ATTRIBUTION,
    "CC-BY-2.0": _ATTRIBUTION,
    "CC-BY-2.5": _ATTRIBUTION,
    "CC-BY-3.0": _ATTRIBUTION,
    "CC-BY-4.0": _ATTRIBUTION,
    "ODC-By-1.0": _ATTRIBUTION,
    "CDLA-Permissive-1.0": _ATTRIBUTION,
    "CDLA-Permissive-2.0": _ATTRIBUTION,
    "CC-BY-SA-2.0": _SHARE_ALIKE,
    "CC-BY-SA-2.5": _SHARE_ALIKE,
    "CC-BY-SA-3.0": _SHARE_ALIKE,
    "CC-BY-SA-4.0": _SHARE_ALIKE,
    "ODbL-1.0": _SHARE_ALIKE,
    "CDLA-Sharing-1.0": _SHARE_ALIKE,
    "GPL-2.0-only": _SHARE_ALIKE,
    "GPL-3.0-only": _SHARE_ALIKE,
    "GPL-3.0-or-later": _SHARE_ALIKE,
    "AGPL-3.0-only": _SHARE_ALIKE,
    "CC-BY-NC-2.0": _NC,
    "CC-BY-NC-3.0": _NC,
    "CC-BY-NC-4.0": _NC,
    "CC-BY-NC-SA-3.0": _NC_SHARE_ALIKE,
    "CC-BY-NC-SA-4.0": _NC_SHARE_ALIKE,
}


_PUBLIC_DOMAIN = frozenset({"CC0-1.0", "Unlicense", "PDDL-1.0"})


# Identifiers of the Hugging Face Hub and other usual spellings, for licenses that SPDX names
# differently (huggingface.co/docs/hub/repositories-licenses).
_SPELLINGS = {
    "apache": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "c-uda": "C-UDA-1.0",
    "cc-zero": "CC0-1.0",
    "cc0": "CC0-1.0",
    "cc0-1": "CC0-1.0",
    "cdla-permissive": "CDLA-Permissive-2.0",
    "etalab-2.0": "etalab-2.0",
    "odbl": "ODbL-1.0",
    "odc-by": "ODC-By-1.0",
    "odc-by-1": "ODC-By-1.0",
    "pddl": "PDDL-1.0",
    "wtfpl": "WTFPL",
}
# Each license in parentheses is parsed, compared and printed by functions that call themselves.
_MAX_PARENTHESES = 100
# Families of licenses without a version, which `license_expression` reads as their first version.
_AMBIGUOUS = frozenset({"gpl", "lgpl", "agpl", "gfdl", "bsd", "mpl", "cddl", "epl"})


def spdx_of(value: Any) -> str:
    """Return the license that a column states as an SPDX expression, or "" if it states none.

    Identifiers of the Hugging Face Hub are converted (``odc-by`` to ODC-By-1.0). Several licenses
    are joined by AND. A license without an SPDX identifier becomes ``LicenseRef-NAME``.

    Args:
        value: a text or a list of texts; any other value states no license.
    """
    if isinstance(value, list):
        return combine(spdx_of(part) for part in value)
    if not isinstance(value, str) or not (text := " ".join(value.split())):
        return ""
    known = _known(text)
    if known is None and "," in text:
        return combine(spdx_of(part) for part in text.split(","))
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[:60]
    if name.lower() in _AMBIGUOUS:
        # LicenseRef-GPL is an alias of GPL-1.0-or-later in `license_expression`.
        name = f"{name.lower()}-unversioned"
    return known or (f"LicenseRef-{name}" if name else "")


@cache
def _known(text: str) -> str | None:
    """Return the SPDX expression that a text means, or None if it means no known license."""
    name = re.sub(r"^the-|-licen[sc]e(?=-|$)|-version", "", re.sub(r"[\s_]+", "-", text.lower()))
    name = re.sub(r"-v(?=\d)", "-", name)
    if name in _AMBIGUOUS:
        return None
    for spelling in (_SPELLINGS.get(name), text, name):
        if spelling is not None:
            try:
                return str(_parse(spelling).render())
            except ConfigError:
                continue
    return None


@cache
def check_license(expression: str) -> str:
    """Check a license expression, and return it in canonical SPDX spelling.

    Raises:
        ConfigError: the expression is invalid or contains unknown licenses.
    """
    if expression.lower() in _AMBIGUOUS:
        raise ConfigError(
            f"the license {expression!r} has no version.",
            "Use an identifier with a version, such as GPL-3.0-only.",
        )
    return _known(expression) or str(_parse(expression).render())


def combine(expressions: Iterable[str]) -> str:
    """Return the license of a row that is based on other rows, which have these licenses.

    The licenses are joined by AND. Public domain dedications such as CC0-1.0 have no conditions,
    and are omitted if there is any other license.

    Raises:
        ConfigError: an expression is invalid.
    """
    return _combine(frozenset(e for e in expressions if e))


@cache
def _combine(expressions: frozenset[str]) -> str:
    parts = {part for e in expressions for part in _conjuncts(e)}
    conditional = sorted(parts - _PUBLIC_DOMAIN) or sorted(parts)[:1]
    return " AND ".join(
        f"({p})" if " OR " in p and len(conditional) > 1 else p for p in conditional
    )


def _conjuncts(expression: str) -> list[str]:
    """Split an expression at its top-level AND operators; do not split an OR expression."""
    tree = _parse(expression)
    parts = tree.args if isinstance(tree, _licensing().AND) else [tree]
    return [str(part.render()) for part in parts]


@cache
def terms(expression: str) -> Terms | None:
    """Return the terms of a license expression, or None if they are unknown.

    An AND expression has the conditions of all the licenses that it joins. An OR expression has
    the conditions of its most permissive license.
    """
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


def restrictiveness(expression: str) -> int:
    """Return how restrictive a license is, as a number from 0 to 4.

    0: no conditions, 1: attribution, 2: share alike, 3: no commercial use, 4: unknown terms.
    """
    return _freedom(terms(expression))


def _freedom(known: Terms | None) -> int:
    if known is None:
        return 4
    if not known.commercial_use:
        return 3
    return 2 if known.share_alike else int(known.attribution)


@dataclass(frozen=True, slots=True)
class CommercialUse:
    """Whether rows may be used commercially, and why.

    ``answer`` is ``yes``; ``with conditions`` (a license requires that derived works have the same
    license, or the terms of a model restrict how its output may be used for training); ``no``; or
    ``unknown``. ``why`` lists the licenses and models that decide the answer. Giving credit is an
    obligation, but not a condition.
    """

    answer: str
    why: str

    def __str__(self) -> str:
        """Return the answer and the reason as one line of text."""
        return f"{self.answer} ({self.why})"


def commercial_use(licenses: Iterable[str], generators: Iterable[str]) -> CommercialUse:
    """Return whether rows with these licenses and generators may be used commercially.

    If the answers for the licenses and models differ, the answer is the most restrictive one.
    """
    reasons: dict[str, list[str]] = {"no": [], "unknown": [], "with conditions": [], "yes": []}
    for license in licenses:
        answer, why = _license_answer(license)
        reasons[answer].append(why)
    for model in generators:
        answer, why = _model_answer(model)
        reasons[answer].append(why)
    for answer, why_all in reasons.items():
        if why_all:
            return CommercialUse(answer, "; ".join(why_all))
    return CommercialUse("unknown", "there are no rows")


def _license_answer(license: str) -> tuple[str, str]:
    known = terms(license)
    if known is None:
        return "unknown", f"the terms of {license or 'an empty license'} are unknown"
    if not known.commercial_use:
        return "no", f"{license} forbids commercial use"
    if known.share_alike:
        return "with conditions", f"{license} requires sharing under the same license"
    return "yes", f"{license} allows it"


def _model_answer(model: str) -> tuple[str, str]:
    conditions = generator_terms(model)
    if conditions is None:
        return "unknown", f"the terms of {model} are unknown"
    if not conditions.commercial_use:
        return "no", f"{model} ({conditions.name}): {conditions.asks}"
    if conditions.restricted:
        return "with conditions", f"{model} ({conditions.name}): {conditions.asks}"
    return "yes", f"the terms of {model} ({conditions.name}) allow it"


@dataclass(frozen=True, slots=True)
class Requirement:
    """A requirement for the license of each row and for the models that wrote the row.

    If ``name`` is ``commercial-use``, the license must be known to allow commercial use, and the
    terms of every model must be known to have no conditions for its output, unless the user
    accepts them (``accepted``: names of models or of terms). If ``name`` is ``permissive``, the
    license must also have no share-alike condition. Any other name is a comma-separated list of
    allowed licenses; the terms of models are not checked then.
    """

    name: str
    allowed: frozenset[str] = frozenset()
    accepted: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, accepted: Sequence[str] = ()) -> Requirement:
        """Parse a requirement: ``commercial-use``, ``permissive``, or licenses separated by commas.

        Raises:
            ConfigError: the list is empty, or contains a license that SPDX does not define.
        """
        if text in ("commercial-use", "permissive"):
            return cls(text, accepted=tuple(accepted))
        names = [name.strip() for name in text.split(",") if name.strip()]
        if not names:
            raise ConfigError(
                "--require is empty.",
                "Use commercial-use, permissive, or a comma-separated list of licenses.",
            )
        return cls(text, frozenset(check_license(name) for name in names))

    def objection(self, license: str, generators: Iterable[str]) -> tuple[str, str] | None:
        """If the requirement is violated, return a code and an explanation, otherwise None."""
        if self.allowed:
            if _granted(_parse(license), self.allowed) if license else False:
                return None
            return (
                "license_not_listed",
                f"{license or 'an empty license'} is not one of {self.name}",
            )
        answer, why = _license_answer(license)
        codes = {"unknown": "unknown_license", "no": "non_commercial"}
        if answer in ("unknown", "no") or (answer != "yes" and self.name == "permissive"):
            return codes.get(answer, "share_alike"), why
        for model in generators:
            answer, why = _model_answer(model)
            if answer != "yes" and not self._accepts(model):
                return ("unknown_generator" if answer == "unknown" else "generator_terms"), why
        return None

    def _accepts(self, model: str) -> bool:
        """Return whether the user accepts a model's terms, by its name or that of the terms."""
        conditions = generator_terms(model)
        name = "" if conditions is None else conditions.name.lower()
        return any(
            a.lower() == model.lower() or (name and name.startswith(a.lower()))
            for a in self.accepted
        )


def _granted(tree: Any, allowed: frozenset[str]) -> bool:
    """Return whether a license is allowed: each part of an AND, or at least one of an OR."""
    if tree.isliteral:
        return str(tree.render()) in allowed
    granted = [_granted(part, allowed) for part in tree.args]
    return any(granted) if isinstance(tree, _licensing().OR) else all(granted)


def obligations(
    licenses: Mapping[str, int], generators: Mapping[str, int], attributions: Mapping[str, int]
) -> list[str]:
    """Return what licenses and models require of the users of a dataset, one sentence each.

    Args:
        licenses: number of rows by license (an SPDX expression).
        generators: number of rows by model that wrote the rows, or text on which they are based.
        attributions: number of rows by attribution text.
    """
    known = {name: terms(name) for name in licenses}

    def counted(names: Iterable[str]) -> str:
        return ", ".join(f"{name} ({licenses[name]:,} rows)" for name in names)

    attribution = [n for n, t in known.items() if t and t.attribution]
    share_alike = [n for n, t in known.items() if t and t.share_alike]
    non_commercial = [n for n, t in known.items() if t and not t.commercial_use]
    unknown = [n for n, t in known.items() if t is None]
    sentences = [f"Commercial use: {commercial_use(licenses, generators)}."] if licenses else []
    if attribution:
        sentences.append(
            f"Give credit, and keep the license text or a link to it: {counted(attribution)}."
        )
        sentences += [f"Credit for {rows:,} rows: {text}" for text, rows in attributions.items()]
    if share_alike:
        sentences.append(
            f"Share works based on these rows under the same license: {counted(share_alike)}."
        )
    if non_commercial:
        sentences.append(
            f"Do not use these rows or works based on them commercially: {counted(non_commercial)}."
        )
    if {n for n in share_alike if terms(n) != _NC_SHARE_ALIKE} and non_commercial:
        sentences.append(
            "A work that combines share-alike and non-commercial rows cannot comply with both "
            f"licenses: {', '.join(share_alike)} requires that derived works keep its terms, and "
            f"{', '.join(non_commercial)} forbids "
            "commercial use. Keep the rows separate, each under its own license."
        )
    if unknown:
        sentences.append(
            f"Read the license texts, whose terms are unknown to instructgen: {counted(unknown)}."
        )
    for model, rows in generators.items():
        authorship = f"{model} wrote {rows:,} rows, or text on which these rows are based"
        conditions = generator_terms(model)
        if conditions is None:
            sentences.append(f"{authorship}; the terms of the model are unknown.")
        elif conditions.restricted:
            sentences.append(f"{authorship}. {conditions.name}: {conditions.asks}.")
    return sentences


def _parse(expression: str) -> Any:
    from license_expression import ExpressionError

    hint = "Use an SPDX identifier such as CC-BY-4.0, or LicenseRef-NAME for any other license."
    try:
        if expression.count("(") > _MAX_PARENTHESES:
            raise ExpressionError("there are too many parentheses")
        parsed = _licensing().parse(expression)
        unknown = _licensing().unknown_license_keys(parsed)
    except (ExpressionError, IndexError, TypeError, AssertionError) as error:
        # The parser raises the last three for parentheses and operators without licenses.
        raise ConfigError(f"{expression!r} is an invalid SPDX expression.", hint) from error
    unknown = [key for key in unknown if not key.lower().startswith("licenseref-")]
    if parsed is None or unknown:
        raise ConfigError(
            f"unknown SPDX license {', '.join(map(repr, unknown)) or repr(expression)}.", hint
        )
    return parsed


@cache
def _licensing() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()
