"""Tests of mixes: rows taken, license obligations, splits, and reproducible bytes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgen import import_data, merge
from instructgen.commands.mixing import MixOptions, targets
from instructgen.errors import ConfigError, InputError, RunError
from instructgen.licensing.licenses import Requirement, commercial_use, obligations
from instructgen.licensing.model_terms import UNNAMED_MODEL
from instructgen.schema.sample import Origin, Sample
from instructgen.store import (
    RejectionCount,
    read_manifest,
    read_samples,
    splits_of,
    write_dataset,
)
from instructgen.training.rows import held_out_at, rows_for
from tests.conftest import real

FOUR = {
    # Dolly, OASST1, Alpaca, Alpaca Libre.
    "dolly": ("CC-BY-SA-3.0", ()),
    "oasst": ("Apache-2.0", ()),
    "alpaca": ("CC-BY-NC-4.0", ("text-davinci-003",)),
    "alpaca-libre": ("MIT", ("gpt-3.5-turbo",)),
}


def dataset(folder: Path, source: str, rows: int, **more: object) -> Path:
    license, generators = FOUR.get(source, ("CC0-1.0", ()))
    samples = [
        Sample(
            f"{source} task number {i}",
            output=f"answer {i}",
            source=source,
            license=license,
            generators=generators,
            attribution=(f"The makers of {source}",),
            language="en",
            category=f"c{i % 3}",
            origin=Origin(record=str(i), group=f"g{i // 2}"),
            **more,  # type: ignore[arg-type]
        )
        for i in range(rows)
    ]
    write_dataset(folder, samples, [], lambda _: "")
    return folder


def recipe(folder: Path, text: str) -> Path:
    path = folder / "mix.toml"
    path.write_text(text)
    return path


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    sizes = {"dolly": 40, "oasst": 30, "alpaca": 20, "alpaca-libre": 10}
    return [dataset(tmp_path / name, name, rows) for name, rows in sizes.items()]


# What an obligation names: licenses, attribution texts, models and their company, and its subject.
NAMED = re.compile(
    r"Apache-2\.0|CC-BY-NC-4\.0|CC-BY-SA-3\.0|MIT|The makers of [\w-]+|[\w.-]+-turbo|[\w-]+-003"
    r"|OpenAI|credit|same license|commercial|compete",
    re.IGNORECASE,
)


def named_in(obligation: str) -> tuple[set[str], list[int]]:
    """Return the names in a sentence and its row counts, in order."""
    counts = [int(count) for count in re.findall(r"(\d+) rows", obligation)]
    return set(NAMED.findall(obligation)), counts


def test_obligations_of_dolly_oasst_alpaca_and_alpaca_libre(
    tmp_path: Path, four: list[Path]
) -> None:
    result = merge(four, tmp_path / "mix")
    terms = result.terms
    sentences = obligations(terms.licenses, terms.generators, terms.attributions)
    licenses = {"Apache-2.0", "CC-BY-NC-4.0", "CC-BY-SA-3.0", "MIT"}
    assert commercial_use(terms.licenses, terms.generators).answer == "no"
    assert "CC-BY-NC-4.0" in sentences[0]
    assert [named_in(sentence) for sentence in sentences[1:]] == [
        ({"credit", *licenses}, [30, 20, 40, 10]),
        ({"Credit", "The makers of alpaca"}, [20]),
        ({"Credit", "The makers of alpaca-libre"}, [10]),
        ({"Credit", "The makers of dolly"}, [40]),
        ({"Credit", "The makers of oasst"}, [30]),
        ({"same license", "CC-BY-SA-3.0"}, [40]),
        ({"commercial", "CC-BY-NC-4.0"}, [20]),
        # A text made from rows of both cannot comply with both.
        ({"commercial", "CC-BY-SA-3.0", "CC-BY-NC-4.0"}, []),
        ({"compete", "gpt-3.5-turbo", "OpenAI"}, [10]),
        ({"compete", "text-davinci-003", "OpenAI"}, [20]),
    ]
    card = (tmp_path / "mix" / "README.md").read_text()
    assert "| CC-BY-NC-4.0 | 20 | yes | no | no |" in card
    assert "license: other" in card


@pytest.mark.parametrize(
    ("require", "kept", "reasons"),
    [
        (
            "commercial-use",
            {"dolly": 40, "oasst": 30},
            {"non_commercial": 20, "generator_terms": 10},
        ),
        (
            "permissive",
            {"oasst": 30},
            {"share_alike": 40, "non_commercial": 20, "generator_terms": 10},
        ),
        ("MIT,Apache-2.0", {"oasst": 30, "alpaca-libre": 10}, {"license_not_listed": 60}),
    ],
)
def test_requirements(
    tmp_path: Path, four: list[Path], require: str, kept: dict[str, int], reasons: dict[str, int]
) -> None:
    result = merge(four, tmp_path / "mix", require=require)
    assert Counter(s.source for s in read_samples(result.out)) == kept
    assert {r.reason: r.count for r in result.rejections} == reasons
    assert result.rows + result.rejected == 100


def test_rows_of_a_model_whose_terms_are_accepted_may_be_used_commercially(
    tmp_path: Path, four: list[Path]
) -> None:
    for number, name in enumerate(("OpenAI", "gpt-3.5-turbo")):
        out = tmp_path / str(number)
        result = merge(four, out, require="commercial-use", accept_terms=name)
        assert {r.reason: r.count for r in result.rejections} == {"non_commercial": 20}
    # Accepting the terms of a model does not change a license.
    result = merge(four, tmp_path / "b", require="permissive", accept_terms=["OpenAI"])
    assert {r.reason for r in result.rejections} == {"non_commercial", "share_alike"}


def test_the_answer_about_commercial_use_is_that_of_the_most_restrictive_row() -> None:
    answers = {
        (("MIT",), ()): "yes",
        (("MIT",), ("smollm2",)): "yes",
        (("MIT",), ("gpt-4",)): "with conditions",
        (("MIT", "CC-BY-SA-4.0"), ()): "with conditions",
        (("MIT",), ("gpt-4", UNNAMED_MODEL)): "unknown",
        (("LicenseRef-Mine",), ("gpt-4",)): "unknown",
        (("LicenseRef-Mine", "CC-BY-NC-4.0"), ()): "no",
        (("MIT",), ("c4ai-command-r-v01",)): "no",
    }
    for (licenses, models), answer in answers.items():
        assert commercial_use(licenses, models).answer == answer, (licenses, models)


def test_which_licenses_and_models_a_requirement_allows() -> None:
    listed = Requirement.of("MIT, CC-BY-4.0")
    assert listed.objection("MIT OR GPL-3.0-only", ()) is None
    assert listed.objection("MIT AND GPL-3.0-only", ()) is not None
    free = Requirement.of("commercial-use")
    assert free.objection("LicenseRef-Mine", ()) is not None
    assert free.objection("", ()) is not None
    assert free.objection("MIT", ("c4ai-command-r-v01",)) is not None
    assert free.objection("MIT", ("my/own",)) is not None
    assert Requirement.of("commercial-use", ["my/own"]).objection("MIT", ("my/own",)) is None
    assert Requirement.of("permissive").objection("MIT", ("my/own",)) is not None
    for bad in ("", "MIT,nope", "commercial use"):
        with pytest.raises(ConfigError):
            Requirement.of(bad)


def test_weights_caps_temperature_and_copies(tmp_path: Path, four: list[Path]) -> None:
    text = "[mix]\nrows = 60\nrepeat = 3\n[mix.weights]\nalpaca-libre = 4\n[mix.caps]\ndolly = 5\n"
    result = merge(four, tmp_path / "mix", recipe=recipe(tmp_path, text))
    counts = Counter(s.source for s in read_samples(result.out))
    assert counts.total() == 60
    assert counts["dolly"] == 5
    # The other 55 rows are divided 30 : 20 : 40, and Alpaca Libre has at most 30 with copies.
    assert counts == {"dolly": 5, "oasst": 18, "alpaca": 12, "alpaca-libre": 25}
    ids = Counter(s.id for s in read_samples(result.out))
    assert max(ids.values()) == 3
    copies = [s for s in read_samples(result.out) if s.labels]
    assert {label.name for s in copies for label in s.labels} == {"copy"}
    for name, share in (("category", 3), ("language", 1)):
        by = recipe(tmp_path, f'[mix]\nrows = 30\nby = "{name}"\ntemperature = 1e9\n')
        mixed = merge(four, tmp_path / name, recipe=by)
        found = Counter(getattr(s, name) for s in read_samples(mixed.out))
        assert set(found.values()) == {30 // share}


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 1000), min_size=1),
    st.integers(1, 3000),
    st.floats(0.2, 20),
    st.integers(1, 4),
    st.dictionaries(st.sampled_from("abcde"), st.floats(0, 50)),
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 2000)),
)
def test_targets_keep_their_bounds(
    sizes: dict[str, int],
    rows: int,
    temperature: float,
    repeat: int,
    weights: dict[str, float],
    caps: dict[str, int],
) -> None:
    options = MixOptions(
        rows=rows, temperature=temperature, repeat=repeat, weights=weights, caps=caps
    )
    found = targets(sizes, options)
    most = {n: min(sizes[n] * repeat, caps.get(n, 10**9)) for n in sizes}
    assert all(0 <= found[n] <= most[n] for n in sizes)
    open_ = sum(most[n] for n in sizes if weights.get(n, 1) > 0)
    assert sum(found.values()) == min(rows, open_)


def test_splits_separate_no_group_and_no_similar_questions(tmp_path: Path) -> None:
    rows = [
        Sample(f"How do I plant {a} in {b} soil?", output=str(i), source="x", license="MIT",
               origin=Origin(group=f"{a}-{i % 7}"))
        for i, (a, b) in enumerate(
            (a, b) for a in "oak elm fir ash yew".split() for b in "wet dry old red".split() * 5
        )
    ]  # fmt: skip
    write_dataset(tmp_path / "d", rows, [], lambda _: "")
    text = "[mix]\nseed = 3\n[split]\nvalidation = 0.2\ntest = 0.2\nnear = 0.8\n"
    result = merge([tmp_path / "d"], tmp_path / "mix", recipe=recipe(tmp_path, text))
    assert result.splits.keys() == {"train", "validation", "test"}
    sides: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for s in read_samples(result.out, split=split):
            sides.setdefault(f"q {s.question}", set()).add(split)
            sides.setdefault(f"g {s.origin.group}", set()).add(split)
    assert all(len(split) == 1 for split in sides.values())
    assert sum(result.splits.values()) == len(rows)


def test_similar_questions_are_in_the_same_split(tmp_path: Path) -> None:
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()
    rows = []
    for i in range(40):
        own = " ".join(f"{w}{i}" for w in words)
        rows += [Sample(own, output="a", license="MIT"), Sample(f"{own} please", output="b")]
    write_dataset(tmp_path / "d", rows, [], lambda _: "")
    text = "[split]\nvalidation = 0.25\ntest = 0.25\n"
    result = merge([tmp_path / "d"], tmp_path / "mix", recipe=recipe(tmp_path, text))
    for split, count in result.splits.items():
        pairs = Counter(
            s.instruction.removesuffix(" please") for s in read_samples(result.out, split=split)
        )
        assert set(pairs.values()) == {2}, split
        assert count in (20, 40)


def test_the_same_merge_gives_the_same_bytes(tmp_path: Path, four: list[Path]) -> None:
    """The hash seed, the threads, the time zone and the locale do not change them."""
    text = "[mix]\nrows = 70\ntemperature = 2\nrepeat = 2\n[split]\ntest = 0.2\n"
    path = recipe(tmp_path, text)
    code = (
        "import sys; from instructgen import merge;"
        "merge(sys.argv[3:], sys.argv[1], recipe=sys.argv[2])"
    )
    digests = set()
    for number, settings in enumerate(
        (
            {"PYTHONHASHSEED": "0", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            {"PYTHONHASHSEED": "7", "NUMBA_NUM_THREADS": "2", "TZ": "Asia/Tehran"},
            {"PYTHONHASHSEED": "99", "LC_ALL": "C", "ARROW_NUM_THREADS": "4"},
        )
    ):
        out = tmp_path / f"out{number}" / "mix"
        command = [sys.executable, "-c", code, out, path, *four]
        subprocess.run(command, check=True, env={**os.environ, **settings})
        digest = hashlib.sha256()
        for file in sorted(p for p in out.rglob("*") if p.is_file()):
            digest.update(file.relative_to(out).as_posix().encode() + file.read_bytes())
        digests.add(digest.hexdigest())
    assert len(digests) == 1


def test_a_mix_of_several_buckets_equals_one_of_a_single_bucket(
    tmp_path: Path, four: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = merge(four, tmp_path / "a")
    monkeypatch.setattr("instructgen.commands.merge._ROWS_PER_BUCKET", 7)
    monkeypatch.setattr("instructgen.commands.merge._ROWS_WAITING", 3)
    several = merge(four, tmp_path / "b")
    assert list(read_samples(single.out)) == list(read_samples(several.out))
    assert {p.name for p in several.out.iterdir()} == {p.name for p in single.out.iterdir()}
    in_order = merge(four, tmp_path / "c", recipe=recipe(tmp_path, "[mix]\nshuffle = false\n"))
    input_rows = [s for folder in four for s in read_samples(folder)]
    assert list(read_samples(in_order.out)) == input_rows
    assert list(read_samples(single.out)) != input_rows


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[mix]\nrows = 0\n", r"mix\.toml: mix\.rows: "),
        ("[mix]\nrow = 5\n", r"mix\.toml: mix\.row: .*\brows\b"),
        ("[mix]\nby = 'color'\n", r"mix\.toml: mix\.by: "),
        ("[mix.weights]\nnobody = 2\n", r"^mix\.weights\.nobody: .*\bsource\b"),
        ("[mix.weights]\ndolly = nan\n", r"mix\.toml: mix: weights\.dolly\b"),
        ("[mix.caps]\ndolly = -1\n", r"mix\.toml: mix: caps\.dolly\b"),
        (
            "[split]\ntest = 0.5\nvalidation = 0.5\n",
            r"mix\.toml: split: .*\bvalidation\b.*\btest\b",
        ),
        ("[splits]\n", r"mix\.toml: splits: .*\bsplit\b"),
        ("mix = 3\n", r"mix\.toml: mix\b.*\[mix\]"),
        ("[mix]\nrows = \n", r"mix\.toml: .*\bline 2\b"),
    ],
)
def test_invalid_recipes_raise_an_error_that_names_the_key(
    tmp_path: Path, four: list[Path], text: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        merge(four, tmp_path / "mix", recipe=recipe(tmp_path, text))


def test_invalid_inputs_raise_an_error(tmp_path: Path, four: list[Path]) -> None:
    with pytest.raises(InputError) as missing:
        merge([tmp_path / "none"], tmp_path / "mix")
    assert missing.value.path == tmp_path / "none"
    file = recipe(tmp_path, "")
    with pytest.raises(RunError, match=re.escape(str(file))):
        merge([file], tmp_path / "mix")
    pairs = dataset(tmp_path / "pairs", "pairs", 2)
    rows = [Sample("a", output="b", rejected_output="c", source="pairs", license="MIT")]
    write_dataset(pairs, rows, [], lambda _: "", shape="preferences")
    with pytest.raises(RunError, match=r"/dolly\b.*\binstructions\b.*/pairs\b.*\bpreferences\b"):
        merge([four[0], pairs], tmp_path / "mix")
    # No row has this license.
    none = merge(four, tmp_path / "mix", require="CC0-1.0")
    assert (none.rows, none.rejected) == (0, 100)
    alone = merge([pairs], tmp_path / "prefs")
    manifest = read_manifest(alone.out)
    assert manifest is not None
    assert manifest.shape == "preferences"


def test_real_datasets_are_mixed_completely(tmp_path: Path) -> None:
    folders = []
    for name, path in (
        ("dolly", "dolly/databricks-dolly-15k.rejoined.jsonl"),
        ("oasst", "oasst1/oasst1-en-validation.messages.jsonl"),
        ("libre1", "alpaca-libre/alpaca_libre_tasks_v1.jsonl"),
        ("libre2", "alpaca-libre/alpaca_libre_tasks_v2.jsonl"),
    ):
        folders.append(import_data(real(path), tmp_path / name, on_bad_row="reject").out)
    result = merge(folders, tmp_path / "mix")
    assert result.rows == 15011 + 188 + 2375 + 2280
    assert result.terms.licenses == {
        "Apache-2.0": 188,
        "CC-BY-SA-3.0": 15011,
        "MIT": 4655,
    }


def split_dataset(folder: Path, count: int = 40) -> Path:
    """Write a dataset with a test split."""
    rows = [
        Sample(
            f"Tell me {i} things about {w}{i} and {w}s", output=str(i), source="a", license="MIT"
        )
        for i, w in zip(range(count), "fox owl bee elm oak yew ivy fig".split() * 9, strict=False)
    ]
    write_dataset(folder / "whole", rows, [], lambda _: "")
    result = merge(
        [folder / "whole"], folder / "split", recipe=recipe(folder, "[split]\ntest = 0.2\n")
    )
    return result.out


def test_a_split_is_kept_and_rows_similar_to_it_are_not_trained_on(tmp_path: Path) -> None:
    split = split_dataset(tmp_path)
    held = list(read_samples(split, split="test"))
    others = [Sample(f"{s.instruction}", output="o", source="b", license="MIT") for s in held[:2]]
    others += [Sample(f"{held[2].instruction} please", output="o", source="b", license="MIT")]
    others += [Sample("Something else entirely here", output="o", source="b", license="MIT")]
    write_dataset(tmp_path / "others", others, [], lambda _: "")
    mix = merge([tmp_path / "others", split], tmp_path / "mix")
    assert {s.id for s in read_samples(mix.out, split="test")} == {s.id for s in held}
    train = list(read_samples(mix.out, split="train"))
    assert [s.source for s in train].count("b") == 1
    assert mix.rejections == (RejectionCount("merge", "mix", "held_out", 3),)
    # The same holds after another merge.
    again = merge([mix.out], tmp_path / "again")
    assert {s.id for s in read_samples(again.out, split="test")} == {s.id for s in held}


def test_a_dataset_with_splits_is_not_split_again(tmp_path: Path) -> None:
    split = split_dataset(tmp_path)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(split))}\b.*\[split\]"):
        merge([split], tmp_path / "mix", recipe=recipe(tmp_path, "[split]\nvalidation = 0.1\n"))


def test_only_training_rows_of_a_dataset_with_splits_are_seeds(tmp_path: Path) -> None:
    from instructgen.commands.generate import read_seeds

    split = split_dataset(tmp_path)
    seeds, bad = read_seeds([split], "", "", "fail")
    assert [s.id for s in seeds] == [s.id for s in read_samples(split, split="train")]
    assert bad == []
    assert len(read_seeds([tmp_path / "whole"], "", "", "fail")[0]) == 40


def test_no_row_of_a_held_out_split_is_trained_on(tmp_path: Path) -> None:
    split = split_dataset(tmp_path)
    held = {s.id for s in read_samples(split, split="test")}
    rows = rows_for(tmp_path / "whole", split, 2, lambda _: True)
    assert len(rows.held_out) == 2 and len(held) > 2
    assert not held & {s.id for s in rows.train}
    assert len(rows.train) == 40 - len(held)


def test_a_merge_writes_only_the_splits_of_its_recipe(tmp_path: Path) -> None:
    """A merge with only a test split has no empty validation split."""
    datasets = pytest.importorskip("datasets")
    texts = [f"Say {chr(97 + i) * 9} and {chr(98 + i) * 7}." for i in range(20)]
    data = tmp_path / "d"
    write_dataset(data, [Sample(t, output="Yes.") for t in texts], [], lambda _: "")
    file = tmp_path / "split.toml"
    file.write_text("[split]\ntest = 0.2\n")
    split = merge([data], tmp_path / "m", recipe=file).out
    assert list(splits_of(split)) == ["train", "test"]
    opened = datasets.load_dataset(str(split), cache_dir=str(tmp_path / "cache"))
    assert {name: rows.num_rows for name, rows in opened.items()} == splits_of(split)
    rows = rows_for(split, None, 2, lambda _: True)
    assert len(rows.held_out) == 2
    assert {s.id for s in rows.held_out} <= {s.id for s in read_samples(split, split="train")}
    file.write_text("[split]\nvalidation = 0.2\n")
    other = merge([data], tmp_path / "n", recipe=file).out
    assert list(splits_of(other)) == ["train", "validation"]
    assert len(held_out_at(other)) == splits_of(other)["validation"]
