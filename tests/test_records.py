"""JSON files as dataclasses: damage has one error class, and old formats are migrated or named."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instructgen
from instructgen.errors import DamagedFileError, RunError, VersionError
from instructgen.pipeline.plan import read_state
from instructgen.schema.measures import Estimate, EvaluationRecord, Measure
from instructgen.schema.records import InputRef
from instructgen.store import (
    FORMAT,
    LicenseCounts,
    Manifest,
    Part,
    RejectionCount,
    has_current_run,
    manifest_in,
    read_info,
    read_provenance,
    read_rows,
    read_samples,
    read_training,
    root_of,
)
from instructgen.store.records import (
    Provenance,
    RunInfo,
    Seal,
    Seeds,
    SessionUse,
    TrainingInfo,
    TrainingInputs,
)
from tests.conftest import ROOT

# Written by version 0.1.0: a curated dataset, a run, and the run.json of a training.
OLD = ROOT / "tests" / "format_2"
# Written by version 0.2.0: an imported dataset and the settings of a run.
OLD_3 = ROOT / "tests" / "format_3"
# Written by version 0.3.0: an imported dataset with tools, and a run of the method alpaca.
OLD_4 = ROOT / "tests" / "format_4"

PATH = Path("file.json")
texts = st.text(max_size=20)
counts = st.integers(0, 2**40)
json_values = st.recursive(
    st.none() | st.booleans() | counts | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=3)
by_name = st.dictionaries(texts, counts, max_size=3)
refs = st.builds(InputRef, texts, texts, texts)
estimates = st.builds(Estimate, *[st.floats(-1e9, 1e9)] * 3, counts)
records = st.one_of(
    st.builds(Provenance, texts, st.tuples(refs), objects),
    st.builds(
        Manifest,
        st.just(FORMAT),
        st.sampled_from(["instructions", "preferences"]),
        counts,
        counts,
        st.builds(LicenseCounts, by_name, by_name, by_name),
        st.tuples(st.builds(RejectionCount, texts, texts, texts, counts)),
        objects,
        st.tuples(st.builds(Part, texts, counts, counts, texts)),
    ),
    st.builds(
        RunInfo,
        st.just(FORMAT),
        texts,
        objects,
        st.builds(Seeds, texts, counts),
        st.dictionaries(texts, texts, max_size=3),
        objects,
        st.none() | st.builds(Seeds, texts, counts),
    ),
    st.builds(SessionUse, st.floats(0, 1e9), counts, counts),
    st.builds(
        TrainingInfo,
        counts,
        st.builds(TrainingInputs, texts, refs, refs, st.tuples(refs), st.none() | refs, objects),
    ),
    st.builds(Seal, st.dictionaries(texts, texts, max_size=3)),
    st.builds(
        EvaluationRecord,
        refs,
        st.none() | refs,
        st.tuples(texts),
        texts,
        counts,
        st.tuples(st.builds(Measure, texts, estimates, st.none() | estimates)),
        st.dictionaries(texts, texts, max_size=3),
        st.tuples(texts),
    ),
)


@given(records)
def test_a_record_is_read_as_it_was_written(record) -> None:
    assert type(record).from_json(record.to_json(), PATH) == record


@given(records, st.data())
def test_a_record_without_a_key_is_damaged(record, data: st.DataObject) -> None:
    values = orjson.loads(record.to_json())
    required = [
        name
        for name, field in type(record).__dataclass_fields__.items()
        if str(field.default).startswith("<dataclasses._MISSING")
        and str(field.default_factory).startswith("<dataclasses._MISSING")
    ]
    del values[data.draw(st.sampled_from(required))]
    with pytest.raises(DamagedFileError) as caught:
        type(record).of(values, PATH)
    assert caught.value.path == PATH


@given(st.binary(max_size=200))
def test_other_bytes_are_damaged_and_nothing_else(data: bytes) -> None:
    for kind in (Provenance, Manifest, RunInfo, TrainingInfo, Seal, EvaluationRecord):
        with pytest.raises(DamagedFileError):
            kind.from_json(data, PATH)


def test_a_dataset_of_the_last_version_is_migrated_on_reading(tmp_path: Path) -> None:
    folder = OLD / "clean"
    assert orjson.loads((folder / "manifest.json").read_bytes())["format"] == 2
    manifest = manifest_in(folder)
    assert (manifest.format, manifest.rows, manifest.rejected) == (FORMAT, 1, 4)
    assert [(r.filter, r.reason, r.count) for r in manifest.rejections] == [
        ("novelty", "too_similar", 4)
    ]
    assert manifest.facts["read"] == 5
    assert manifest.terms.licenses == {"CC0-1.0": 1}
    (row,) = read_rows(folder)
    assert len(list(read_rows(folder, "rejected"))) == 4
    assert read_provenance(folder).command == "curate"
    # Every command that reads a dataset reads it too.
    assert instructgen.merge(folder, tmp_path / "mix").rows == 1
    assert instructgen.explain(folder, row["id"]).verdict == "kept"
    assert instructgen.report(folder, tmp_path / "r.html").bytes > 1_000
    assert len(instructgen.open(folder)) == 1
    assert instructgen.export(folder, tmp_path / "a" / "e.jsonl", format="alpaca").rows == 1


def test_a_dataset_of_format_3_is_read_with_defaults(tmp_path: Path) -> None:
    folder = OLD_3 / "data"
    assert orjson.loads((folder / "manifest.json").read_bytes())["format"] == 3
    manifest = manifest_in(folder)
    assert (manifest.format, manifest.rows, manifest.rejected) == (FORMAT, 2, 1)
    first, second = read_samples(folder)
    assert (first.history[0].role, first.output, second.output) == (
        "system",
        "Nile, Rhine.",
        "Onega.",
    )
    ids = [row["id"] for row in read_rows(folder)]
    assert [first.id, second.id] == ids
    assert {(s.language_confidence, s.label, s.tools) for s in (first, second)} == {
        (None, None, "")
    }
    assert instructgen.merge(folder, tmp_path / "mix").rows == 2
    clean = instructgen.curate(folder, tmp_path / "clean")
    assert clean.rows + clean.rejected == 2
    assert len(instructgen.open(folder)) == 2


def test_a_run_of_format_3_is_rejected_with_the_version_to_use(tmp_path: Path) -> None:
    shutil.copytree(OLD_3 / "run", tmp_path / "run")
    with pytest.raises(VersionError) as caught:
        read_info(tmp_path / "run")
    assert caught.value.found == 3
    assert "0.2.0" in caught.value.hint


def test_a_dataset_of_format_4_is_read(tmp_path: Path) -> None:
    folder = OLD_4 / "data"
    assert orjson.loads((folder / "manifest.json").read_bytes())["format"] == 4
    manifest = manifest_in(folder)
    assert (manifest.format, manifest.rows, manifest.rejected) == (FORMAT, 2, 1)
    first, second = read_samples(folder)
    assert [m.role for m in first.steps] == ["assistant", "tool"]
    assert (first.steps[0].tool_calls[0].name, first.steps[1].content) == ("lookup", "6650")
    assert orjson.loads(first.tools)[0]["function"]["name"] == "lookup"
    assert (first.reasoning_content, first.output) == ("The tool says 6650.", "6,650 km.")
    assert (second.output, second.origin.draft, second.plain) == ("Onega.", None, True)
    assert [first.id, second.id] == [row["id"] for row in read_rows(folder)]
    assert instructgen.merge(folder, tmp_path / "mix").rows == 2
    assert set(read_samples(tmp_path / "mix")) == {first, second}
    clean = instructgen.curate(folder, tmp_path / "clean")
    assert clean.rows + clean.rejected == 2
    assert len(instructgen.open(folder)) == 2
    assert instructgen.explain(folder, first.id).verdict == "kept"
    assert instructgen.report(folder, tmp_path / "r.html").bytes > 1_000


def test_the_dataset_of_a_run_of_format_4_is_read(tmp_path: Path) -> None:
    """The column draft of its rows is named batch."""
    folder = OLD_4 / "run"
    manifest = manifest_in(folder)
    assert (manifest.format, manifest.rows, manifest.rejected) == (FORMAT, 2, 6)
    rows = list(read_rows(folder))
    assert all("batch" in row["origin"] for row in rows)
    samples = list(read_samples(folder))
    assert [s.id for s in samples] == [row["id"] for row in rows]
    assert [s.origin.draft for s in samples] == [row["origin"]["batch"] for row in rows]
    assert {(s.origin.method, s.origin.run) for s in samples} == {("alpaca", manifest.facts["run"])}
    # Rows of both formats have the columns of the current one.
    mix = instructgen.merge([folder, OLD_4 / "data"], tmp_path / "mix")
    assert mix.rows == 4
    assert {s.id for s in samples} < {s.id for s in read_samples(tmp_path / "mix")}
    assert all("draft" in row["origin"] for row in read_rows(tmp_path / "mix"))
    assert instructgen.explain(tmp_path / "mix", samples[0].id).verdict == "kept"
    assert instructgen.report(folder, tmp_path / "r.html").bytes > 1_000
    assert instructgen.export(folder, tmp_path / "a" / "e.jsonl", format="alpaca").rows == 2


def test_a_run_of_format_4_is_rejected_with_the_version_to_use(tmp_path: Path) -> None:
    shutil.copytree(OLD_4 / "run", tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (row, *_) = read_rows(tmp_path / "run")
    for call in (
        lambda: read_info(tmp_path / "run"),
        lambda: instructgen.rebuild(tmp_path / "run"),
        lambda: instructgen.snapshot(tmp_path / "run", tmp_path / "snapshot"),
        lambda: instructgen.explain(tmp_path / "run", row["id"]),
        lambda: instructgen.generate(
            ROOT / "seeds" / "general.jsonl", 9, tmp_path / "run", engine="echo"
        ),
    ):
        with pytest.raises(VersionError) as caught:
            call()
        assert caught.value.found == 4
        assert "0.3.0" in caught.value.hint
    assert {p: p.read_bytes() for p in before} == before
    assert not has_current_run(tmp_path / "run")
    assert not (tmp_path / "snapshot").exists()


def test_the_dataset_of_an_old_run_is_migrated_too(tmp_path: Path) -> None:
    manifest = manifest_in(OLD / "run")
    assert manifest.rows == 6 == len(list(read_rows(OLD / "run")))
    assert manifest.facts["funnel"]["kept_rows"] == 6
    assert sum(r.count for r in manifest.rejections) > 0
    assert instructgen.merge(OLD / "run", tmp_path / "mix").rows == 6
    assert instructgen.report(OLD / "run", tmp_path / "r.html").bytes > 1_000


def test_an_old_dataset_is_not_written_over(tmp_path: Path) -> None:
    shutil.copytree(OLD / "clean", tmp_path / "old")
    before = sorted(p.name for p in (tmp_path / "old").iterdir())
    with pytest.raises(VersionError) as caught:
        instructgen.merge(OLD / "run", tmp_path / "old")
    assert caught.value.found == 2
    assert sorted(p.name for p in (tmp_path / "old").iterdir()) == before


def test_an_old_run_is_rejected_with_the_version_to_use(tmp_path: Path) -> None:
    shutil.copytree(OLD / "run", tmp_path / "run")
    for call in (
        lambda: read_info(tmp_path / "run"),
        lambda: instructgen.rebuild(tmp_path / "run"),
        lambda: instructgen.generate(
            ROOT / "seeds" / "general.jsonl", 9, tmp_path / "run", engine="echo"
        ),
    ):
        with pytest.raises(VersionError) as caught:
            call()
        assert caught.value.found == 2
        assert "0.1.0" in caught.value.hint


def test_an_old_training_is_rejected_with_the_version_to_use(tmp_path: Path) -> None:
    shutil.copytree(OLD / "model", tmp_path / "model")
    with pytest.raises(VersionError) as caught:
        read_training(tmp_path / "model")
    assert caught.value.found == 1
    assert "0.1.0" in caught.value.hint
    # Its weights can still be a base model, whose license terms are those of its own base.
    assert root_of(str(tmp_path / "model")) == "smollm2"
    (tmp_path / "model" / "run.json").write_text("[1]")
    assert root_of(str(tmp_path / "model")) == str(tmp_path / "model")


def test_a_newer_dataset_is_rejected(tmp_path: Path) -> None:
    shutil.copytree(OLD / "clean", tmp_path / "new")
    path = tmp_path / "new" / "manifest.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "format": FORMAT + 1}))
    with pytest.raises(VersionError) as caught:
        manifest_in(tmp_path / "new")
    assert (caught.value.path, caught.value.found) == (path, FORMAT + 1)


def test_a_path_in_a_manifest_cannot_leave_the_folder(tmp_path: Path) -> None:
    shutil.copytree(OLD / "clean", tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    values = orjson.loads(path.read_bytes())
    values["files"][0]["path"] = "../data/part-00000.parquet"
    path.write_bytes(orjson.dumps(values))
    with pytest.raises(DamagedFileError):
        manifest_in(tmp_path / "d")


def test_a_damaged_pipeline_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline.json").write_text('{"format": 2, "steps": {"a": {}}}')
    with pytest.raises(DamagedFileError) as caught:
        read_state(tmp_path)
    assert caught.value.path == tmp_path / "pipeline.json"
    (tmp_path / "pipeline.json").write_text('{"format": 1, "steps": {"a": {"asked": {}}}}')
    with pytest.raises(VersionError):
        read_state(tmp_path)


def test_a_folder_without_a_dataset_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        manifest_in(tmp_path)
    assert not isinstance(caught.value, DamagedFileError)
