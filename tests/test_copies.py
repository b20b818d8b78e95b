"""Copies of frozen records: equal to those of `dataclasses.replace`, and independent of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen.engines import Request, Sampling
from instructgen.generation.methods import Draft
from instructgen.schema.copies import changed
from instructgen.schema.sample import FilterValue, Sample, Score

RECORDS: list[Any] = [
    Sample("Why?", output="So.", scores=(Score("s", 0.5),), filter_values=(FilterValue("f", 1.0),)),
    Request("prompt", Sampling(seed=3), schema={"type": "object"}),
    Draft(1, "rows", Sample("Why?"), (2, 3), state={"round": 1}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
@given(data=st.data())
def test_a_copy_is_that_of_replace(record: Any, data: st.DataObject) -> None:
    names = [field.name for field in fields(record)]
    values = data.draw(st.dictionaries(st.sampled_from(names), st.integers()))
    before = {name: getattr(record, name) for name in names}
    copy = changed(record, **values)
    assert copy == replace(record, **values)
    assert type(copy) is type(record) and copy is not record
    assert {name: getattr(record, name) for name in names} == before


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_an_unknown_field_is_an_error(record: Any) -> None:
    with pytest.raises(AttributeError):
        changed(record, no_such_field=1)
