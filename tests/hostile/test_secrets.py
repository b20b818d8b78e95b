"""Secrets do not reach files, messages or the terminal, in whatever way they come back."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

import instructgen
from instructgen.engines.openai import OpenAIEngine
from instructgen.errors import ConfigError, InputError, InstructgenError
from instructgen.printable import HIDDEN, without_secrets
from instructgen.store import write_record
from tests.conftest import ROOT
from tests.test_openai import Server, reply

GENERAL = ROOT / "seeds" / "general.jsonl"
KEY = "sk-canary-0123456789abcdef"
PASSWORD = "pass wörd/0123456789"
USER = f"someone:{quote(PASSWORD, safe='')}"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def forms() -> list[str]:
    """Return the secrets in the forms in which a server could send them back."""
    basic = base64.b64encode(f"someone:{PASSWORD}".encode()).decode()
    return [KEY, f"Bearer {KEY}", PASSWORD, quote(PASSWORD, safe=""), basic]


def secrets_in(data: bytes) -> list[str]:
    return [form for form in (KEY, PASSWORD, quote(PASSWORD, safe="")) if form.encode() in data]


@pytest.mark.parametrize("place", ["text", "reasoning", "message", "body", "error", "reason"])
def test_a_server_that_sends_secrets_back_records_none(tmp_path: Path, place: str) -> None:
    echo = " ".join(forms())
    message: dict[str, Any] = {"role": "assistant", "content": f"Task: {echo}"}
    answer: Any = {"choices": [{"message": message, "finish_reason": "stop"}]}
    status = 200
    if place == "reasoning":
        message["reasoning_content"] = echo
    elif place == "message":
        answer, status = {"error": {"message": echo}}, 400
    elif place == "body":
        answer, status = echo, 400
    elif place == "error":
        answer = {"error": echo}
    elif place == "reason":
        answer["choices"][0]["finish_reason"] = echo
    server = Server(reply(status, answer))
    url = server.url.replace("://", f"://{USER}@")
    try:
        instructgen.generate(
            GENERAL, 2, tmp_path / "run", endpoint=url, engine="openai", model="m",
            settings={"engine.max_retries": 0, "generate.max_tokens_total": 3_000},
        )  # fmt: skip
    except InstructgenError as error:
        assert secrets_in(str(error).encode()) == []
    written = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert written or place == "error"
    assert {str(p): secrets_in(p.read_bytes()) for p in written if secrets_in(p.read_bytes())} == {}


@pytest.mark.parametrize("error", [InputError, ConfigError])
def test_errors_contain_no_secrets(error: type[InstructgenError]) -> None:
    raised = error(f"the key {KEY}", hint=f"http://a:b@c/ and {KEY}")
    assert (raised.message, raised.hint) == (
        f"the key {HIDDEN}",
        f"http://{HIDDEN}@c/ and {HIDDEN}",
    )


def test_only_secrets_are_removed() -> None:
    text = "mail me@here.org, see http://x.org/@user and https://x.org/?a=b@c, 1@2"
    assert without_secrets(text) == text


def test_records_contain_no_secrets(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", orjson.dumps({"url": f"http://{USER}@h/v1", "key": KEY}))
    assert secrets_in((tmp_path / "a.json").read_bytes()) == []


@pytest.mark.parametrize("arguments", [["--endpoint", f"http://{USER}@h:0/v1"], [f"--{KEY}"]])
def test_the_terminal_shows_no_secrets(arguments: list[str], tmp_path: Path) -> None:
    command = ["generate", "--seeds", str(GENERAL), "--target", "2", "--out", str(tmp_path / "r")]
    command += ["--engine", "openai", "--model", "m", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "instructgen", *command], capture_output=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert secrets_in(done.stdout + done.stderr) == []
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("value", [f"{KEY}\n", f" {KEY} ", f"{KEY}\r\n"])
def test_spaces_around_a_key_are_removed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", value)
    server = Server(reply())
    engine = OpenAIEngine(model="m", endpoint=server.url)
    engine.start()
    assert engine._session is not None
    assert engine._session.headers["Authorization"] == f"Bearer {KEY}"
    engine.close()


@pytest.mark.parametrize("value", [f"{KEY}\nX: y", f"{KEY} {KEY}", "ключ-0123456789", "a\0b"])
def test_an_impossible_key_is_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    if "\0" in value:
        value = value.replace("\0", "\x7f")
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(ConfigError) as caught:
        OpenAIEngine(model="m", endpoint="http://127.0.0.1:9/v1").start()
    assert "OPENAI_API_KEY" in caught.value.message
    assert value not in str(caught.value) and KEY not in str(caught.value)
