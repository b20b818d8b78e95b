"""SPDX expressions: checked, combined, and what they ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.errors import ConfigError
from instructgen.licensing.licenses import TERMS, check_licence, combine, terms


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        ("cc0-1.0", "CC0-1.0"),
        ("apache-2.0 and mit", "Apache-2.0 AND MIT"),
        ("LicenseRef-Mine", "LicenseRef-Mine"),
        ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
    ],
)
def test_spelling(given: str, spelt: str) -> None:
    assert check_licence(given) == spelt


@pytest.mark.parametrize("bad", ["nope", "MIT AND", "", "CC-BY-SA 3.0", "MIT AND nope"])
def test_unknown(bad: str) -> None:
    with pytest.raises(ConfigError, match="SPDX"):
        check_licence(bad)


def test_every_known_licence_is_spdx() -> None:
    for name in TERMS:
        assert check_licence(name) == name


def test_combination() -> None:
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
    assert check_licence(combine(["MIT OR Apache-2.0", "CC-BY-4.0"]))


PARTS = st.sampled_from(["MIT", "CC-BY-4.0", "CC0-1.0", "MIT OR CC-BY-SA-4.0", "(MIT)"])


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_a_combination_is_spdx_and_combining_again_changes_nothing(parts: list[str]) -> None:
    combined = combine(parts)
    assert check_licence(combined)
    assert combine([combined, *parts]) == combined


def test_terms() -> None:
    mix = terms("Apache-2.0 AND CC-BY-NC-4.0")
    assert mix is not None
    assert mix.attribution
    assert not mix.commercial_use
    assert terms("LicenseRef-Mine") is None
    assert terms("") is None
