"""The filter `pii` on 200 labelled lines: precision first."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import regex

from instructgen.filters.pii import Pii
from instructgen.schema.sample import Sample

LINES = (Path(__file__).parent / "pii_lines.txt").read_text("utf-8").splitlines()
MARK = regex.compile(r"\{\{(\w+):(.*?)\}\}")


def expected(line: str) -> str:
    return MARK.sub(lambda m: f"[{m[1].upper()}]", line)


def plain(line: str) -> str:
    return MARK.sub(lambda m: m[2], line)


def placeholders(text: str) -> Counter[str]:
    return Counter(regex.findall(r"\[(EMAIL|PHONE|CARD|IP|KEY|IBAN|SSN)\]", text))


def test_the_sample_is_as_described() -> None:
    assert len(LINES) == len(set(LINES)) == 200
    assert sum(MARK.search(line) is None for line in LINES) == 100


def test_nothing_else_is_masked_and_little_is_missed() -> None:
    found, right, marked = Counter[str](), Counter[str](), Counter[str]()
    for line in LINES:
        masked, _ = Pii().change(plain(line), "output")
        wanted = placeholders(expected(line))
        marked += wanted
        found += placeholders(masked)
        right += wanted & placeholders(masked)
        if wanted == placeholders(masked):
            # The ends of each span are right, too.
            assert masked == expected(line)
    assert found == right, "something was masked that is not personal data"
    missed = marked - right
    # National numbers of countries that are not in `regions`; a country without a standard for its
    # accounts.
    assert missed == {"PHONE": 3, "IBAN": 1}


@pytest.mark.parametrize("region", [("RU", "8 (495) 123-45-67"), ("FR", "06 42 17 58 93")])
def test_national_numbers_are_found_in_their_region(region: tuple[str, str]) -> None:
    country, number = region
    masked, _ = Pii(regions=("US", country)).change(f"Tel. {number}, bitte", "output")
    assert masked == "Tel. [PHONE], bitte"


@pytest.mark.parametrize(
    "text",
    ["1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610", "git@github.com:a/b.git",
     "https://user@example.com/x", "Section 1.2.3.4", "@dataclass", "x@y.transpose()",
     "4111 1111 1111 1112", "GB00 WEST 1234 5698 7654 32", "666-12-3456", "ghp_" + "x" * 36],
)  # fmt: skip
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert Pii().change(text, "output") == (text, [])


def test_rows_are_masked_or_rejected_by_kind() -> None:
    row = Sample("Pay to DE89 3704 0044 0532 0130 00 BIC COBADEFF", output="Done.")
    (kept,) = Pii().evaluate([row])
    assert kept.sample.instruction == "Pay to [IBAN] BIC COBADEFF"
    (other,) = Pii(kinds=("email",)).evaluate([row])
    assert other.sample is row
    (rejected,) = Pii(action="reject").evaluate([row])
    assert rejected.rejection is not None
    assert rejected.rejection.reason == "personal_data"
