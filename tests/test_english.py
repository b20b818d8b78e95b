"""The prose of the project is plain, standard English in American spelling."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Phrases of the private dialect that the project once had.
DIALECT = re.compile(
    r"\b(?:is|are|was|were)\s(?:no|none)\b(?!\s(?:longer|more|need|one|other\sway|way\sto|less|such))"
    r"|\b(?:go|goes|going|gone|went)\son\b|\bmend(?:s|ed|ing)?\b|\b(?:tells?|told)\b|\bbesides?\b"
    r"|\bstands?\b|\blies\s(?:in|at)\b|\b(?:came|comes)\s(?:to|of)\b"
    r"|\b(?:anew|likewise|whoever|hereby|thereof|likeness|parted)\b|\bfor\sever\b"
    r"|\bof\s(?:ours|one's\sown)\b|\bso\s(?:many|much)\b|(?:^|[.:;]\s)Of\s(?:the|a|an|it|what)\b"
)
BRITISH = re.compile(
    r"\b\w*(?:licence|colour|behaviour|centre|neighbour|favour|honour|catalogue|judgement)\w*\b"
    r"|\b(?:recogn|normal|optim|general|summar|organ|initial|serial|token|util|random|categor)"
    r"is(?:e|es|ed|ing|ation|er)s?\b|\b(?:cancell|labell|modell|travell)(?:ed|ing)\b|\bgrey\b",
    re.IGNORECASE,
)
# The American words that the pattern also matches, and names of others.
ALLOWED = {"optimism"}
# Rewritten with the loop, and not counted until then.
LATER = {"loop.py", "runner.py", "prefer.py", "openai.py"}
SKIPPED = {".venv", ".git", "runs", "build", "format_2"}


def python_texts(path: Path) -> Iterator[str]:
    """Strings with more than a word, docstrings and comments."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        value = getattr(node, "value", None)
        if isinstance(node, ast.Constant) and isinstance(value, str) and " " in value.strip():
            yield value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")


def markdown_texts(path: Path) -> Iterator[str]:
    """Lines outside code blocks."""
    fenced = False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield line


def files(ending: str, *, tests: bool) -> list[Path]:
    found = [p for p in ROOT.rglob(f"*{ending}") if not SKIPPED & set(p.relative_to(ROOT).parts)]
    return [p for p in found if ("tests" in p.relative_to(ROOT).parts) == tests]


GROUPS = {
    "package": (files(".py", tests=False), python_texts, 0.3),
    "tests": (files(".py", tests=True), python_texts, 1.0),
    "markdown": (files(".md", tests=False), markdown_texts, 0.3),
}


@pytest.mark.parametrize("group", GROUPS)
def test_few_phrases_of_the_dialect(group: str) -> None:
    members, texts_of, limit = GROUPS[group]
    words, hits = 0, []
    for path in members:
        if path.name in LATER:
            continue
        for text in texts_of(path):
            words += len(text.split())
            hits += [f"{path.relative_to(ROOT)}: {m.group()}" for m in DIALECT.finditer(text)]
    assert words > 8_000
    assert 1000 * len(hits) / words < limit, hits


@pytest.mark.parametrize("group", ["package", "markdown"])
def test_american_spelling(group: str) -> None:
    members, texts_of, _ = GROUPS[group]
    found = [
        f"{path.relative_to(ROOT)}: {m.group()}"
        for path in members
        for text in texts_of(path)
        for m in BRITISH.finditer(text)
        if m.group().lower() not in ALLOWED and not text.startswith(("run --limit", "`licence`"))
    ]
    assert found == []


def test_identifiers_are_spelled_so_too() -> None:
    names = {
        (path.name, name)
        for path in GROUPS["package"][0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in [getattr(node, "id", None) or getattr(node, "name", None) or ""]
        if isinstance(name, str) and BRITISH.search(name.replace("_", " "))
    }
    assert names == set()


def test_docstrings_are_sentences() -> None:
    """A public docstring begins with a capital letter and its first sentence ends."""
    wrong = []
    for path in GROUPS["package"][0]:
        if path.name in LATER or "instructgen" not in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            kinds = ast.FunctionDef | ast.ClassDef | ast.Module
            if not isinstance(node, kinds) or getattr(node, "name", "").startswith("_"):
                continue
            text = ast.get_docstring(node)
            if text and not (text[0].isupper() or text[0] in "`\"'" or path.name == "__init__.py"):
                wrong.append(f"{path.name}: {text[:50]}")
            if text and not re.search(r"[.:)]$", text.split("\n\n")[0]):
                wrong.append(f"{path.name}: {text[:50]}")
    assert wrong == []
