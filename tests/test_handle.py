"""The handle that `instructgen.open` returns, for notebooks."""

from __future__ import annotations

from pathlib import Path

import pytest

import instructgen
from instructgen.errors import InputError, RunError
from tests import forks

WORDS = ("sun", "sea", "moon", "sand", "wind", "rain", "snow", "fog")
ROWS = [
    {"instruction": f"Describe the <b>{word}</b> in {i} words.", "output": f"It is {word}."}
    for i, word in enumerate(WORDS, start=2)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("handle")
    instructgen.import_data(ROWS, place / "a", license="MIT", language="en")
    recipe = {"filters": [{"name": "wording", "words": ["sea"]}]}
    instructgen.curate(place / "a", place / "b", recipe=recipe)
    return place


def test_rows_and_frames_have_the_same_content(folder: Path) -> None:
    data = instructgen.open(folder / "a")
    assert len(data) == len(ROWS)
    texts = [row["instruction"] for row in data.rows()]
    assert texts == [row["instruction"] for row in ROWS]
    frame = data.to_pandas()
    assert list(frame["instruction"]) == texts
    assert list(data.to_datasets()["instruction"]) == texts


def test_rejected_rows_have_their_reason(folder: Path) -> None:
    data = instructgen.open(folder / "b")
    (row,) = data.rows("rejected")
    assert row["filter"] == "wording"
    assert list(data.to_pandas("rejected")["filter"]) == ["wording"]
    assert data.manifest.rejected == 1


def test_splits_become_a_dataset_dict(folder: Path) -> None:
    recipe = {"split": {"test": 0.3}}
    instructgen.merge(folder / "a", folder / "c", recipe=recipe)
    data = instructgen.open(folder / "c")
    loaded = data.to_datasets()
    assert {name: len(part) for name, part in loaded.items()} == data.splits
    assert set(data.splits) == {"train", "test"}


def test_explain_prints_what_the_command_line_prints(folder: Path) -> None:
    data = instructgen.open(folder / "b")
    for table in ("data", "rejected"):
        row = next(data.rows(table))
        explanation = data.explain(row["id"])
        done = forks.command("explain", folder / "b", row["id"])
        assert done.returncode == 0
        assert done.stdout.strip() == str(explanation).strip() == repr(explanation).strip()
        assert row["id"] in done.stdout


def test_html_is_escaped(folder: Path) -> None:
    html = instructgen.open(folder / "a")._repr_html_()
    assert "<b>sun</b>" not in html
    assert "&lt;b&gt;sun&lt;/b&gt;" in html
    assert "MIT" in html


def test_a_folder_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        instructgen.open(tmp_path / "nothing")
    assert caught.value.path == tmp_path / "nothing"
    with pytest.raises(RunError):
        instructgen.open(tmp_path)
    file = tmp_path / "f"
    file.write_text("x")
    with pytest.raises(RunError):
        instructgen.open(file)
