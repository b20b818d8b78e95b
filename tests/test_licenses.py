"""SPDX license expressions: validation, combination, and terms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.errors import ConfigError
from instructgen.licensing.licenses import TERMS, check_license, combine, terms


@pytest.mark.parametrize(
    ("expression", "canonical"),
    [
        ("cc0-1.0", "CC0-1.0"),
        ("apache-2.0 and mit", "Apache-2.0 AND MIT"),
        ("LicenseRef-Mine", "LicenseRef-Mine"),
        ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
    ],
)
def test_expressions_are_returned_in_spdx_spelling(expression: str, canonical: str) -> None:
    assert check_license(expression) == canonical


@pytest.mark.parametrize(
    ("expression", "invalid"),
    [
        ("nope", "'nope'"),
        ("MIT AND", "'MIT AND'"),
        ("", "''"),
        ("CC-BY-SA of 2007", "'CC-BY-SA of 2007'"),
        ("MIT AND nope", "'nope'"),
    ],
)
def test_invalid_expressions_raise_an_error_that_names_them(expression: str, invalid: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)(?=.*SPDX).*{invalid}"):
        check_license(expression)


def test_every_license_with_known_terms_is_an_spdx_license() -> None:
    for name in TERMS:
        assert check_license(name) == name


def test_combined_licenses() -> None:
    assert combine(["CC0-1.0", "CC0-1.0"]) == "CC0-1.0"
    assert combine(["CC0-1.0", "CC-BY-SA-3.0"]) == "CC-BY-SA-3.0"
    assert combine(["MIT", "Apache-2.0", "MIT"]) == "Apache-2.0 AND MIT"
    assert combine(["MIT OR Apache-2.0", "CC-BY-4.0"]) == "CC-BY-4.0 AND (MIT OR Apache-2.0)"
    assert combine([]) == ""
    assert combine(["(MIT AND CC-BY-4.0) OR CC-BY-SA-4.0", "Apache-2.0"]) == (
        "((MIT AND CC-BY-4.0) OR CC-BY-SA-4.0) AND Apache-2.0"
    )
    assert combine(["CC-BY-4.0 AND (MIT OR Apache-2.0)", "CC-BY-4.0"]) == (
        "CC-BY-4.0 AND (MIT OR Apache-2.0)"
    )
    assert check_license(combine(["MIT OR Apache-2.0", "CC-BY-4.0"]))


PARTS = st.sampled_from(["MIT", "CC-BY-4.0", "CC0-1.0", "MIT OR CC-BY-SA-4.0", "(MIT)"])


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_a_combination_is_valid_and_combining_it_again_changes_nothing(parts: list[str]) -> None:
    combined = combine(parts)
    assert check_license(combined)
    assert combine([combined, *parts]) == combined


def test_terms_of_combined_unknown_and_missing_licenses() -> None:
    combined = terms("Apache-2.0 AND CC-BY-NC-4.0")
    assert combined is not None
    assert combined.attribution
    assert not combined.commercial_use
    assert terms("LicenseRef-Mine") is None
    assert terms("") is None
