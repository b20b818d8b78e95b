"""Small files that would need much memory or time: each is read or refused within limits."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import instructgen
from instructgen.errors import ConfigError
from instructgen.models.loading import read_tokenizer
from instructgen.models.templates import check_template
from instructgen.schema.sample import Sample
from instructgen.store import write_dataset
from instructgen.store.files import digest_of_file
from tests.conftest import ROOT

# What a process may use in addition to what it has after its imports.
EXTRA = 512 * 2**20
SECONDS = 120
CODE = """
import resource, sys, time
from pathlib import Path
import pyarrow.parquet, pyarrow.dataset, instructgen
from instructgen.errors import InstructgenError
from instructgen.commands import curate, import_data, merge, explain
from instructgen.formats import records
from instructgen.filters import recipe
path, out = Path(sys.argv[1]), Path(sys.argv[2])
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    {action}
    print("read")
except InstructgenError as error:
    print(type(error).__name__)
    sys.exit(2)
"""
READ = "instructgen.import_data(path, out, license='MIT', on_bad_row='reject')"
OPEN = "n = sum(1 for _ in instructgen.open(path).rows())"
CURATE = "instructgen.curate(path, out, recipe='default')"
RECIPE = "recipe.load_filters(str(path))"


def zipped(path: Path, parts: Callable[[], object]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for part in parts():  # type: ignore[attr-defined]
            file.write(part)


def many_bad_rows(path: Path) -> None:
    zipped(path, lambda: (b"1\n" * 2**16 for _ in range(16)))


def long_line(path: Path) -> None:
    zipped(path, lambda: (b"x" * 2**20 for _ in range(1_200)))


def long_list(path: Path) -> None:
    zipped(path, lambda: (b"[" * 2**20 for _ in range(64)))


def many_keys(path: Path) -> None:
    row = {f"k{i}": i for i in range(300_000)} | {"instruction": "a b c", "output": "d"}
    path.write_bytes(orjson.dumps(row) + b"\n")


def wide_csv(path: Path) -> None:
    names = ",".join(f"c{i}" for i in range(200_000))
    path.write_text(f"{names}\n{'1,' * 199_999}1\n")


def wide_parquet(path: Path) -> None:
    pq.write_table(pa.table({f"c{i}": [1] for i in range(20_000)}), path)


def long_dictionary(path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 768, pa.int32()), ["x" * 2**20])
    pq.write_table(pa.table({"instruction": values, "output": values}), path, compression="zstd")


def huge_group(path: Path) -> None:
    column = pa.array(np.zeros(2**28 + 2**27, np.int64))
    pq.write_table(
        pa.table({"instruction": column}), path, compression="zstd", use_dictionary=False,
        row_group_size=2**30,
    )  # fmt: skip


def deep_json(path: Path) -> None:
    path.write_text('{"instruction": ' + "[" * 10**6 + "]" * 10**6 + "}\n")


def deep_toml(path: Path) -> None:
    path.write_text(".".join("a" * 200_000) + " = 1\n")


def many_toml_tables(path: Path) -> None:
    path.write_text("[[filters]]\nname = 'length'\n" * 60_000)


def long_toml(path: Path) -> None:
    path.write_text("# " + "x" * 2**27 + "\n")


def deep_toml_list(path: Path) -> None:
    path.write_text("filters = " + "[" * 200 + "]" * 200 + "\n")


def tree(path: Path) -> None:
    """Write one conversation tree of OASST with very many answers."""
    answer = {"message_id": "", "parent_id": "root", "message_tree_id": "root", "role": "assistant",
              "text": "Yes.", "lang": "en", "rank": 0}  # fmt: skip
    root = {**answer, "message_id": "root", "parent_id": None, "role": "prompter", "text": "Is it?"}
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(json.dumps(root) + "\n")
        for number in range(60_000):
            file.write(json.dumps({**answer, "message_id": f"m{number}", "rank": number}) + "\n")


BOMBS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "bad rows": ("a.jsonl.gz", many_bad_rows, READ),
    "a long line of JSON": ("a.jsonl.gz", long_line, READ),
    "a long line of CSV": ("a.csv.gz", long_line, READ),
    "an endless list": ("a.json.gz", long_list, READ),
    "many keys": ("a.jsonl", many_keys, READ),
    "a wide CSV header": ("a.csv", wide_csv, READ),
    "many columns of Parquet": ("a.parquet", wide_parquet, READ),
    "a long value in a dictionary": ("a.parquet", long_dictionary, READ),
    "a huge row group": ("a.parquet", huge_group, READ),
    "deep JSON": ("a.jsonl", deep_json, READ),
    "a tree of OASST": ("a.jsonl.gz", tree, READ.replace("path,", "path, format='oasst', out=")
                        .replace("out= out,", "out=out,")),
    "a deep key of TOML": ("a.toml", deep_toml, RECIPE),
    "many tables of TOML": ("a.toml", many_toml_tables, RECIPE),
    "a long file of TOML": ("a.toml", long_toml, RECIPE),
    "a deep list of TOML": ("a.toml", deep_toml_list, RECIPE),
}  # fmt: skip


def bounded(action: str, path: Path, out: Path) -> str:
    """Run an action in a process with limits; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("{action}", action), str(path), str(out), str(EXTRA)],
        capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, check=False,
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": str(out.parent)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert done.returncode in (0, 2), (done.returncode, done.stderr[-500:])
    return done.stdout.strip()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_read_or_refused_within_512_mib(tmp_path: Path, name: str) -> None:
    file, write, action = BOMBS[name]
    write(tmp_path / file)
    assert bounded(action, tmp_path / file, tmp_path / "out")


def dataset(folder: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Write a dataset, and replace its part by a changed table with a valid digest."""
    write_dataset(
        folder, [Sample("Say it.", output="It.", license="MIT")], [], lambda _: "---\n---\n"
    )
    (part,) = (folder / "data").glob("*.parquet")
    table = change(pq.read_table(part))
    pq.write_table(table, part, compression="zstd")
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == f"data/{part.name}":
            entry |= {"rows": table.num_rows, "bytes": part.stat().st_size,
                      "sha256": digest_of_file(part)}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def repeated(column: str) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        rows = pa.concat_tables([table] * 1_536)
        values = pa.DictionaryArray.from_arrays(pa.array([0] * 1_536, pa.int32()), ["x" * 2**20])
        at = rows.schema.get_field_index(column)
        return rows.set_column(at, column, values)

    return change


@pytest.mark.parametrize("action", [OPEN, CURATE], ids=["open", "curate"])
@pytest.mark.parametrize("column", ["instruction", "output", "license", "source"])
def test_a_part_that_expands_is_read_in_pieces_or_refused(
    tmp_path: Path, action: str, column: str
) -> None:
    data = dataset(tmp_path / "data", repeated(column))
    (part,) = (data / "data").glob("*.parquet")
    assert part.stat().st_size < 200_000
    assert bounded(action, data, tmp_path / "out")


def test_normal_parts_are_read_with_full_batches(tmp_path: Path) -> None:
    rows = [Sample(f"Task {i}: {'word ' * 50}", output="An answer. " * 40) for i in range(3_000)]
    write_dataset(tmp_path / "d", rows, [], lambda _: "---\n---\n")
    (part,) = (tmp_path / "d" / "data").glob("*.parquet")
    encodings = {
        column.path_in_schema: column.encodings
        for group in [pq.ParquetFile(part).metadata.row_group(0)]
        for column in map(group.column, range(group.num_columns))
    }
    assert "RLE_DICTIONARY" in encodings["license"]
    assert "RLE_DICTIONARY" not in encodings["output"]
    assert len(list(instructgen.open(tmp_path / "d").rows())) == 3_000


TEMPLATES = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "repetition": "{{ 'x' * 10 ** 12 }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "long filter": "{{ ('x' * 10 ** 8) | center(10 ** 11) }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_that_does_not_end_is_refused(name: str) -> None:
    tokenizer = SimpleNamespace(chat_template=TEMPLATES[name])
    if name in ("recursion", "power"):
        # Python ends it with an error.
        check_template(tokenizer, "m")
        return
    with pytest.raises(ConfigError, match="chat template"):
        check_template(tokenizer, "m")


def test_usual_chat_templates_are_accepted() -> None:
    chatml = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}"
    )
    for template in (None, chatml, {"default": chatml, "tool_use": chatml}, "{% broken"):
        check_template(SimpleNamespace(chat_template=template), "m")
    check_template(read_tokenizer("smollm2"), "smollm2")
