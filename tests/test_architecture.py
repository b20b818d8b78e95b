"""The structure holds: imports point one way, the core is light, no path leaks."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from instructgen.plugins import classes
from tests.conftest import ROOT

PACKAGE = ROOT / "instructgen"
# What comes later may import what comes earlier. Packages count as one.
ORDER = [
    "errors",
    "generators",
    "licences",
    "plugins",
    "printable",
    "shipped",
    "versions",
    "models",
    "sample",
    "rows",
    "contents",
    "similarity",
    "sources",
    "seeds",
    "prompts",
    "engines",
    "methods",
    "languages",
    "filters",
    "mix",
    "config",
    "curation",
    "store",
    "loop",
    "drive",
    "card",
    "constraints",
    "verifiers",
    "training",
    "evaluation",
    "suites",
    "reports",
    "commands",
    "progress",
    "cli",
    "pipeline",
    "__main__",
]
FILES = sorted(PACKAGE.rglob("*.py"))


def _name(path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def _imports(path) -> set[str]:
    found = set()
    typing_only = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            typing_only |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        modules = []
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "instructgen":
            modules = [f"instructgen.{a.name}" for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        parts = [m.split(".") for m in modules if m.startswith("instructgen.")]
        found |= {part[1] for part in parts if part[1] != "__version__"}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path) -> None:
    name = _name(path)
    if name == "__init__":
        return
    assert name in ORDER, f"{name} has no place in ORDER"
    allowed = set(ORDER[: ORDER.index(name) + 1])
    assert _imports(path) <= allowed


def test_order_names_only_what_exists() -> None:
    assert set(ORDER) == {_name(p) for p in FILES} - {"__init__"}


def test_import_is_light() -> None:
    heavy = "torch vllm transformers datasets trl pandas pyarrow license_expression rapidfuzz"
    code = f"import sys, instructgen; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_core_needs_no_model_packages() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'vllm', 'transformers']));"
        "import instructgen.cli; from instructgen import evaluate, explain, generate, train;"
        "from instructgen.plugins import classes;"
        "groups = ('filters', 'sources', 'engines', 'methods', 'verifiers', 'suites');"
        "print(*[name for g in groups for name in classes(g)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    groups = ("filters", "sources", "engines", "methods", "verifiers", "suites")
    assert done.stdout.split() == [name for g in groups for name in classes(g)]


def test_installed_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import instructgen.plugins as plugins
    from instructgen.errors import ConfigError

    for value, said in (
        ("instructgen.filters.length:Length", None),
        ("tests.test_architecture:Another", "both add 'length'"),
        ("instructgen.nowhere:Part", "cannot be loaded"),
    ):
        point = EntryPoint("x", value, "instructgen.filters")
        monkeypatch.setattr(plugins, "entry_points", lambda point=point, **_: [point])
        if said is None:
            assert "length" in plugins.classes.__wrapped__("filters")
        else:
            with pytest.raises(ConfigError, match=said):
                plugins.classes.__wrapped__("filters")


class Another:
    """A part with a name that is taken."""

    name = "length"


def test_a_part_is_called_as_its_file() -> None:
    for group in ("filters", "sources", "engines", "methods", "verifiers", "suites"):
        for name, part in classes(group).items():
            stem = part.__module__.rsplit(".", 1)[-1]
            assert stem == name.replace("-", "_") or (group, stem) == ("sources", "native")


def test_no_vague_module_names() -> None:
    vague = {"utils", "util", "helpers", "common", "misc", "base", "core", "manager"}
    assert not {p.stem for p in FILES} & vague


def test_top_folders_are_data_not_packages() -> None:
    assert not list((ROOT / "seeds").rglob("*.py")) + list((ROOT / "filters").rglob("*.py"))


def test_no_code_from_data() -> None:
    banned = {"eval", "exec", "__import__", "pickle", "compile"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in banned, path
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                # Judging code is running it, in a process with limits; a step of a recipe is a
                # command of ours in a process of its own.
                runs = {"subprocess"} if path.name in ("code.py", "steps.py") else set()
                assert not {"pickle", "yaml", "subprocess"} & set(names) - runs, path


def test_every_load_of_a_model_forbids_its_code() -> None:
    """`from_pretrained` of what a folder may bring code for, vLLM, sentence-transformers, lm-eval."""
    loads, seen = {"from_pretrained", "LLM", "SentenceTransformer"}, 0
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            # PEFT's own folders bring weights and JSON only.
            if name not in loads or owner == "PeftModel":
                continue
            seen += 1
            text = ast.unparse(node)
            forbidden = "trust_remote_code=False" in text or "**_NO_CODE" in text
            assert forbidden or (path.name == "folders.py" and "**source" in text), (path, text)
    assert seen >= 7
    assert "trust_remote_code': False" in (PACKAGE / "suites/lm_eval.py").read_text().replace(
        '"', "'"
    )


def test_no_bare_except() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, path


def test_no_machine_paths_in_tracked_files() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    needles = [("/" + "work" + "/").encode(), ("/" + "root" + "/").encode()]
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            data = path.read_bytes()
            assert not any(n in data for n in needles), name
