"""Tests of the export to the formats of other tools, and of the upload to the Hub."""

from __future__ import annotations

import http.server
import json
import re
import threading
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instructgen
from instructgen import export
from instructgen.errors import ConfigError, InputError, RunError, StorageError
from instructgen.formats import read
from instructgen.schema.messages import Message
from instructgen.schema.sample import Sample
from instructgen.store import write_dataset

SYSTEM = Message("system", "Be kind.")
EARLIER = (Message("user", "Hi"), Message("assistant", "Hello"))
ROWS = [
    Sample("Add.", "2 and 3", "5", source="s", license="MIT", attribution=("Ada",), language="en"),
    Sample("And now?", "", "Well\u2028said.", history=(SYSTEM, *EARLIER), license="MIT"),
]


def dataset(folder: Path, rows: list[Sample]) -> Path:
    write_dataset(folder, rows, [], lambda _: "# card", shape=rows[0].shape)
    return folder


def lines(path: Path) -> list[dict]:
    return [orjson.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_export_writes_each_format(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", ROWS)
    for name in ("alpaca", "sharegpt", "openai"):
        result = export(data, tmp_path / f"{name}.jsonl", format=name, columns=("license",))
        assert result.rows == 2
        assert any("MIT" in obligation for obligation in result.obligations)
    alpaca, second = lines(tmp_path / "alpaca.jsonl")
    assert alpaca == {"instruction": "Add.", "input": "2 and 3", "output": "5", "license": "MIT"}
    assert (second["system"], second["history"]) == ("Be kind.", [["Hi", "Hello"]])
    _, sharegpt = lines(tmp_path / "sharegpt.jsonl")
    assert [t["from"] for t in sharegpt["conversations"]] == "system human gpt human gpt".split()
    openai, _ = lines(tmp_path / "openai.jsonl")
    assert openai["messages"][0] == {"role": "user", "content": "Add.\n\n2 and 3"}


def test_exported_preferences_can_be_read_again(tmp_path: Path) -> None:
    row = Sample("Why?", output="So.", rejected_output="No.", history=EARLIER, license="MIT")
    data = dataset(tmp_path / "d", [row])
    export(data, tmp_path / "p.jsonl", format="trl-preference")
    (line,) = lines(tmp_path / "p.jsonl")
    assert [m["role"] for m in line["prompt"]] == ["user", "assistant", "user"]
    assert line["rejected"] == [{"role": "assistant", "content": "No."}]
    (again,) = read(tmp_path / "p.jsonl", license="MIT")
    assert isinstance(again, Sample)
    assert again.id == row.id
    with pytest.raises(ConfigError, match="trl-preference"):
        export(data, tmp_path / "q.jsonl", format="alpaca")


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1)
FILLED = TEXT.map(str.strip).filter(bool)


@given(st.lists(st.tuples(FILLED, st.one_of(st.just(""), FILLED), FILLED), min_size=1, max_size=4))
def test_exported_rows_are_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("e")
    samples = [Sample(a, b, c, license="MIT", language="en") for a, b, c in rows]
    data = dataset(folder / "d", samples)
    export(data, folder / "a.jsonl", format="alpaca")
    back = [s for s in read(folder / "a.jsonl", license="MIT") if isinstance(s, Sample)]
    assert [(s.instruction, s.input, s.output) for s in back] == rows
    export(data, folder / "s.jsonl", format="sharegpt")
    back = [s for s in read(folder / "s.jsonl", license="MIT") if isinstance(s, Sample)]
    assert [s.messages for s in back] == [s.messages for s in samples]


def test_invalid_exports_raise_an_error(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", ROWS)
    file = tmp_path / "a.jsonl"
    with pytest.raises(ConfigError, match=r"\bsharegpt\?"):
        export(data, file, format="sharegtp")
    with pytest.raises(ConfigError, match=r"\bnope\b"):
        export(data, file, format="alpaca", columns=("nope",))
    with pytest.raises(RunError, match=r"\bholdout\b"):
        export(data, file, format="alpaca", split="holdout")
    assert not file.exists()
    file.write_text("existing")
    with pytest.raises(InputError, match="overwrite") as caught:
        export(data, file, format="alpaca")
    assert caught.value.path == file
    assert file.read_text() == "existing"
    assert export(data, file, format="alpaca", overwrite=True).rows == 2
    # A file where the output folder would have to be created.
    with pytest.raises(StorageError, match=re.escape(str(file))):
        export(data, file / "b.jsonl", format="alpaca")


def test_export_creates_the_folders_of_the_file(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", ROWS)
    file = tmp_path / "new" / "folder" / "a.jsonl"
    assert export(data, file, format="alpaca").rows == len(lines(file)) == 2


# -- the Hub ------------------------------------------------------------------------------


def test_publishing_requires_a_token_a_valid_name_and_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    data = dataset(tmp_path / "d", ROWS)
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        instructgen.publish(data, "me/mine")
    for name in ("mine", "me/../mine", "me/mi ne", "/etc/x", "me/"):
        with pytest.raises(ConfigError, match=re.escape(repr(name))):
            instructgen.publish(data, name)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_canary")
    with pytest.raises(RunError, match=re.escape(str(tmp_path / "none"))):
        instructgen.publish(tmp_path / "none", "me/mine")


class _Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's API that a commit of small files uses."""

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        self.server.seen.append((self.path, dict(self.headers), body))  # type: ignore[attr-defined]
        answer: dict = {}
        if self.path == "/api/repos/create":
            answer = {"url": f"{self.server.address}/datasets/me/mine", "id": "me/mine"}  # type: ignore[attr-defined]
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ],
                "commitOid": "0" * 40,
            }
        elif "/commit/" in self.path:
            answer = {
                "commitUrl": f"{self.server.address}/datasets/me/mine/commit/1",  # type: ignore[attr-defined]
                "commitOid": "1" * 40,
            }
        elif "validate-yaml" in self.path:
            answer = {"errors": [], "warnings": []}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_publishing_sends_only_the_files_of_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is replaced by a local HTTP server that records the requests."""
    pytest.importorskip("huggingface_hub")
    data = dataset(tmp_path / "d", ROWS)
    (data / "journal.jsonl").write_text("not uploaded")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = server.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_canary")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
    try:
        result = instructgen.publish(data, "me/mine", private=True)
    finally:
        server.shutdown()
    assert result.files == 4
    paths = [path for path, _, _ in server.seen]  # type: ignore[attr-defined]
    assert paths[0] == "/api/repos/create"
    commit = next(body for path, _, body in server.seen if "/commit/" in path)  # type: ignore[attr-defined]
    sent = [json.loads(line) for line in commit.splitlines()]
    files = {each["value"]["path"] for each in sent if each["key"] == "file"}
    assert files == {
        "README.md",
        "manifest.json",
        "data/part-00000.parquet",
        "rejected/part-00000.parquet",
    }
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="me/mine"):
        instructgen.publish(data, "me/mine")
