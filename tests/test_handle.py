"""The handle that `instructgen.open` returns, for notebooks."""

from __future__ import annotations

from pathlib import Path

import pytest

import instructgen
from instructgen.errors import ConfigError, InputError, RunError
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


def test_a_table_without_rows_and_an_unknown_table(folder: Path) -> None:
    data = instructgen.open(folder / "a")
    assert data.manifest.rejected == 0
    assert len(data.to_pandas("rejected")) == 0
    with pytest.raises(ConfigError, match="rejectd"):
        data.to_pandas("rejectd")


def test_rows_of_a_frame_keep_conversations_and_license_terms(tmp_path: Path) -> None:
    turns = [("user", "Hi."), ("assistant", "Hello."), ("user", "A fruit?"), ("assistant", "Fig.")]
    chat = {"messages": [{"role": role, "content": text} for role, text in turns]}
    given = {"license": "MIT", "language": "en", "model": "some/model", "attribution": "Ann"}
    instructgen.import_data([chat], tmp_path / "a", **given)
    frame = instructgen.open(tmp_path / "a").to_pandas()
    instructgen.import_data(frame, tmp_path / "b")
    before, after = (next(instructgen.open(tmp_path / n).samples()) for n in "ab")
    assert after == before
    assert len(after.history) == 2 and after.generators == ("some/model",)
    # An opened dataset and a Dataset of the library can be passed too.
    handle = instructgen.open(tmp_path / "a")
    assert instructgen.merge([tmp_path / "b"], tmp_path / "c").rows == 1
    assert instructgen.dedup([handle], tmp_path / "d", how="exact").rows == 1
    assert instructgen.import_data(handle.to_datasets(), tmp_path / "e").rows == 1


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
