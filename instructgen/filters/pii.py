"""Masks personal data and secrets, or rejects rows that contain them.

The filter finds email addresses, phone numbers, payment card numbers, public IP addresses, and
API keys. It does not find names of people.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import regex
from pydantic import Field, field_validator

from instructgen.filters import Transform, Verdict
from instructgen.schema.sample import Rejection, Sample

PiiKind = Literal["email", "phone", "card", "ip", "key"]
Span = tuple[int, int]

_EMAIL = regex.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\p{L}\p{N}-]{1,63}\.){1,8}\p{L}{2,24}(?!\w)")
_DIGITS = regex.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.]\d|\d)")
_IP = regex.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]\d|\d)|(?<![\w:])[0-9a-fA-F:]{6,39}(?![\w:])"
)
# Key formats as documented by each service.
_KEY = regex.compile(
    r"\bAKIA[0-9A-Z]{16}\b"  # Amazon
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b"  # GitHub
    r"|\bhf_[A-Za-z0-9]{30,}\b"  # Hugging Face
    r"|\bAIza[0-9A-Za-z_-]{35}\b"  # Google
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}\b"  # Slack
    r"|\bsk-[A-Za-z0-9_-]{20,}\b"  # OpenAI, Anthropic
    r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON Web Token
)
_NUMBERS = regex.compile(r"\d[\d .:()-]{4}|[0-9a-fA-F]:[0-9a-fA-F:]")
_PHONE_LIKE = regex.compile(r"\+?\(?\d[\d\s().-]{6,18}\d")


class Pii(Transform):
    """Mask personal data and secrets, or reject rows that contain them.

    Numbers that only look like personal data are ignored: card numbers must have a valid Luhn
    checksum, IP addresses must be public, and phone numbers must fit a country's numbering plan.
    """

    name = "pii"

    kinds: tuple[PiiKind, ...] = Field(
        ("email", "phone", "card", "ip", "key"),
        description="Kinds of data to find: email (email addresses), phone (phone numbers), card "
        "(payment card numbers), ip (public IP addresses), key (API keys and private keys).",
    )
    action: Literal["mask", "reject"] = Field(
        "mask",
        description="What to do with a row that contains such data: mask (replace the data with a "
        "placeholder such as [EMAIL]) or reject.",
    )
    regions: tuple[str, ...] = Field(
        ("US", "GB"),
        description="Countries (ISO 3166 codes such as US) whose phone numbers are also found "
        "without an international prefix such as +44.",
    )

    @field_validator("regions")
    @classmethod
    def _check_regions(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        from phonenumbers import SUPPORTED_REGIONS

        for region in regions:
            if region not in SUPPORTED_REGIONS:
                raise ValueError(f"{region!r} is not an ISO 3166 country code such as US")
        return regions

    def evaluate(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Return one verdict for each sample, in order."""
        verdicts = super().evaluate(samples)
        if self.action == "mask":
            return verdicts
        return [
            Verdict(before, self._rejection(before, after.sample))
            for before, after in zip(samples, verdicts, strict=True)
        ]

    def change(self, text: str, field: str) -> tuple[str, list[str]]:
        """Return the text with personal data masked, and notes such as ``email (2) masked``."""
        counts: Counter[str] = Counter()
        for kind in self.kinds:
            spans = sorted(self._find(kind, text)) if self._may_contain(kind, text) else []
            for begin, end in reversed(spans):
                text = f"{text[:begin]}[{kind.upper()}]{text[end:]}"
            counts[kind] += len(spans)
        return text, [f"{kind} ({n}) masked" for kind, n in counts.items() if n]

    def _rejection(self, before: Sample, after: Sample) -> Rejection | None:
        if after is before:
            return None
        new = after.edits[len(before.edits) :]
        detail = ", ".join(f"{e.field}: {e.detail.removesuffix(' masked')}" for e in new)
        return self.reject("personal_data", detail)

    def _may_contain(self, kind: PiiKind, text: str) -> bool:
        """Return False if a quick check shows that the text has no data of this kind."""
        if kind == "email":
            return "@" in text
        return kind == "key" or _NUMBERS.search(text) is not None

    def _find(self, kind: PiiKind, text: str) -> Iterator[Span]:
        if kind == "phone":
            yield from self._phones(text)
            return
        pattern, is_valid = _PATTERNS[kind]
        yield from (m.span() for m in pattern.finditer(text) if is_valid(m.group()))

    def _phones(self, text: str) -> Iterator[Span]:
        if not _PHONE_LIKE.search(text):
            return
        import phonenumbers

        spans: set[Span] = set()
        for region in (*self.regions, None):
            for match in phonenumbers.PhoneNumberMatcher(text, region):
                # Without a country code, bare digits are skipped: most are not phone numbers.
                if region is None or not text[match.start : match.end].isdecimal():
                    spans.add((match.start, match.end))
        end = -1
        for span in sorted(spans):
            if span[0] >= end:
                yield span
                end = span[1]


def _is_card(text: str) -> bool:
    """Return whether the Luhn checksum and first digit fit a payment card (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdecimal()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return digits[0] in (3, 4, 5, 6) and (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_public_address(text: str) -> bool:
    """Return whether the text is an IP address that is reachable on the public internet."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _always(_: str) -> bool:
    return True


_PATTERNS: dict[str, tuple[regex.Pattern[str], Callable[[str], bool]]] = {
    "email": (_EMAIL, _always),
    "card": (_DIGITS, _is_card),
    "ip": (_IP, _is_public_address),
    "key": (_KEY, _always),
}
