"""Masks personal data and secrets, or rejects rows that contain them.

The filter finds email addresses, phone numbers, payment card numbers, bank account numbers (IBAN),
social security numbers of the United States, public IP addresses, and API keys. It does not find
names of people. What is found must be valid by its own rules, because a masked Fibonacci number
harms a dataset more than a phone number that is left in it: checksums and numbering plans are those
of python-stdnum and phonenumbers, and the ends of domains those of the Public Suffix List.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Literal

import regex
from pydantic import Field, field_validator

from instructgen.filters import Transform, Verdict
from instructgen.schema.sample import Rejection, Sample

PiiKind = Literal["email", "phone", "card", "ip", "key", "iban", "ssn"]
Span = tuple[int, int]

# Not user names in URLs, and not places of a repository such as git@example.org:project.
_EMAIL = regex.compile(
    # In Chinese, there may be no space before the address.
    r"(?<![\p{Latin}\p{N}_.+-])(?<!://)[\p{Latin}\p{N}_.+-]{1,64}"
    r"@(?:[\p{L}\p{N}-]{1,63}\.){1,8}\p{L}{2,24}(?![\p{Latin}\p{N}_]|:[\w~/])"
)
# As written in print, in groups of four, or without spaces.
_IBAN = regex.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"
)
_SSN = regex.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_DIGITS = regex.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.]\d|\d)")
_IP = regex.compile(
    # A slash after a letter is that of a version, as in Chrome/119.0.0.0.
    r"(?<![A-Za-z0-9_.])(?<![A-Za-z]/)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![A-Za-z0-9_.][0-9]|[0-9])"
    r"|(?<![\w:])[0-9a-fA-F:]{6,39}(?![\w:])"
)
# Key formats as documented by each service.
_KEY = regex.compile(
    r"\bAKIA[0-9A-Z]{16}\b"  # Amazon
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b"  # GitHub
    r"|\bhf_[A-Za-z0-9]{30,}\b"  # Hugging Face
    r"|\bAIza[0-9A-Za-z_-]{35}\b"  # Google
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}\b"  # Slack
    r"|\bsk-[A-Za-z0-9_-]{20,}\b"  # OpenAI, Anthropic
    r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON Web Token
)
_NUMBERS = regex.compile(r"\d[\d .:()-]{4}|[0-9a-fA-F]:[0-9a-fA-F:]")
# Numbers with groups of thousands, and addresses.
_GROUPED = regex.compile(r"\d{1,3}(?: \d{3})+|\d{1,3}(?:\.\d{1,3}){3}")
_GROUP = regex.compile(r"\d+")
# Countries in which most numbers in these digits are written.
_DIGITS_OF = {"IR": regex.compile("[۰-۹]"), "EG": regex.compile("[٠-٩]")}
_LARGE_PART, _FEW_CHARACTERS = 32, 5
# The digits of a bank account may look like a card, and those of a card like a phone number.
_ORDER: tuple[PiiKind, ...] = ("key", "iban", "card", "ssn", "email", "ip", "phone")
_PHONE_LIKE = regex.compile(r"\+?\(?\d[\d\s().-]{6,18}\d")


class Pii(Transform):
    """Mask personal data and secrets, or reject rows that contain them.

    Numbers that only look like personal data are ignored: numbers of cards and accounts must have
    a valid checksum, IP addresses must be public, and phone numbers must fit a numbering plan.
    """

    name = "pii"

    kinds: tuple[PiiKind, ...] = Field(
        ("key", "iban", "card", "ssn", "email", "ip", "phone"),
        description="Kinds of data to find: email (email addresses), phone (phone numbers), card "
        "(payment card numbers), iban (bank account numbers), ssn (social security numbers of the "
        "United States), ip (public IP addresses), key (API keys and private keys).",
    )
    action: Literal["mask", "reject"] = Field(
        "mask",
        description="What to do with a row that contains such data: mask (replace the data with a "
        "placeholder such as [EMAIL]) or reject.",
    )
    regions: tuple[str, ...] = Field(
        ("US", "GB"),
        description="Countries (ISO 3166 codes such as US) whose phone numbers are also found "
        "without an international prefix such as +44. Persian digits add IR, Arabic digits EG.",
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
        for kind in (kind for kind in _ORDER if kind in self.kinds):
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
        return kind in ("key", "iban") or _NUMBERS.search(text) is not None

    def _find(self, kind: PiiKind, text: str) -> Iterator[Span]:
        if kind == "phone":
            yield from self._phones(text)
            return
        pattern, is_valid = _PATTERNS[kind]
        for match in pattern.finditer(text):
            begin, end = match.span()
            # A word in capital letters after the number of an account is not part of it.
            while kind == "iban" and " " in text[begin:end] and not is_valid(text[begin:end]):
                end = begin + text[begin:end].rindex(" ")
            if is_valid(text[begin:end]):
                yield begin, end

    def _phones(self, text: str) -> Iterator[Span]:
        if not _PHONE_LIKE.search(text):
            return
        import phonenumbers

        spans: set[Span] = set()
        implied = [region for region, digits in _DIGITS_OF.items() if digits.search(text)]
        for region in (*self.regions, *implied, None):
            for match in phonenumbers.PhoneNumberMatcher(text, region):
                if region is None or _is_national(text[match.start : match.end]):
                    spans.add((match.start, match.end))
        end = -1
        for span in sorted(spans):
            if span[0] >= end:
                yield span
                end = span[1]


def _is_national(text: str) -> bool:
    """Return whether a number without a country code is written as a phone number.

    Most numbers like 13 104 177, 95.165.131.42 and 1 1 2 3 5 8 13 21 34 are not phone numbers, and
    neither are bare digits, unless they begin with a zero.
    """
    groups = _GROUP.findall(text)
    if text.isdecimal():
        return int(text[0]) == 0
    return not _GROUPED.fullmatch(text) and sum(len(group) == 1 for group in groups) <= 1


def _is_card(text: str) -> bool:
    """Return whether the Luhn checksum and first digits fit a payment card (ISO/IEC 7812-1)."""
    from stdnum import luhn

    digits = "".join(str(int(c)) for c in text if c.isdecimal())
    known = digits[0] in "3456" or 2221 <= int(digits[:4]) <= 2720
    return known and bool(luhn.is_valid(digits))


def _is_public_address(text: str) -> bool:
    """Return whether the text is an IP address that is reachable on the public internet.

    Versions and numbers of sections such as 1.2.3.4 are not: all their parts are small, and not
    equal as in the well-known address 8.8.8.8.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    parts = address.packed
    if address.version == 4 and max(parts) < _LARGE_PART and len(set(parts)) > 1:
        return False
    return address.is_global and not address.is_multicast


def _is_iban(text: str) -> bool:
    from stdnum import iban

    # Not every bank is in the lists of the countries.
    return bool(iban.is_valid(text, check_country=False))


def _is_ssn(text: str) -> bool:
    from stdnum.us import ssn

    return bool(ssn.is_valid(text))


def _has_known_domain(text: str) -> bool:
    """Return whether the domain of an address ends as domains do, unlike logo@2x.png."""
    name, _, domain = text.rpartition("@")
    return name != "git" and _suffixes().publicsuffix(domain.lower()) is not None


@cache
def _suffixes() -> Any:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(accept_unknown=False)


def _is_random(text: str) -> bool:
    """Return whether a key consists of more than a few characters, unlike ghp_xxxx."""
    return len(set(text.rpartition("_")[2])) > _FEW_CHARACTERS or text.startswith("-----")


_PATTERNS: dict[str, tuple[regex.Pattern[str], Callable[[str], bool]]] = {
    "email": (_EMAIL, _has_known_domain),
    "card": (_DIGITS, _is_card),
    "iban": (_IBAN, _is_iban),
    "ssn": (_SSN, _is_ssn),
    "ip": (_IP, _is_public_address),
    "key": (_KEY, _is_random),
}
