"""The structure holds: imports point one way, the core is light, no path leaks."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from instructgen.filters.length import Length
from instructgen.plugins import classes
from tests.conftest import ROOT

PACKAGE = ROOT / "instructgen"
# What comes later may import what comes earlier. Packages count as one.
ORDER = [
    "printable",
    "errors",
    "plugins",
    "resources",
    "versions",
    "config",
    "schema",
    "licensing",
    "similarity",
    "formats",
    "documents",
    "environments",
    "models",
    "engines",
    "filters",
    "store",
    "verifiers",
    "generation",
    "distributed",
    "training",
    "evaluation",
    "reports",
    "commands",
    "cli",
    "pipeline",
    "__main__",
]
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in FILES
}


def _name(path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def _imported(tree: ast.Module) -> set[str]:
    """The modules of this package that a module imports, without the package's name."""
    typing_only: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            typing_only |= {id(child) for child in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{a.name}" for a in node.names}
            found |= inner & MODULES
            found |= {node.module} if inner - MODULES else set()
    return {n.removeprefix("instructgen.") for n in found if n.startswith("instructgen.")}


def _imports(path) -> set[str]:
    found = {name.split(".")[0] for name in _imported(ast.parse(path.read_text()))}
    return found - {"__version__"}


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


def test_few_files_lie_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Modules, not packages: what a function imports when it is called counts too."""
    names = {".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in FILES}
    graph = {n.removesuffix(".__init__"): set[str]() for n in names}
    for path in FILES:
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for node in _imported(ast.parse(path.read_text())):
            graph[name] |= {node} & (graph.keys() - {name, "__init__"})
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_one_class_has_a_name() -> None:
    found: dict[str, str] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                other = found.setdefault(node.name, str(path))
                assert other == str(path), (node.name, other, str(path))


def test_functions_are_short() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    )
    assert lengths[len(lengths) // 2] <= 8
    assert lengths[len(lengths) * 9 // 10] <= 29


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
        ("tests.test_architecture:ORDER", "not a subclass of Filter"),
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


class Another(Length):
    """A part with a name that is taken."""


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
                # These two run in the sandbox.
                inside = path.name in ("answer_side.py", "test_side.py")
                allowed = {"exec", "compile"} if inside else set()
                assert node.func.id not in banned - allowed, path
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                # Code is checked by running it in the sandbox, results are compared in a process
                # that can be killed, and a step of a recipe is a command of instructgen in a
                # separate process. Chat templates and tokenizers are tried in one, documents are
                # read in one, and a replica of an engine runs in one.
                starts = ("sandbox.py", "math.py", "steps.py", "limited.py", "processes.py")
                starts = (*starts, "reading.py")
                runs = {"subprocess"} if path.name in starts else set()
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
            loaders = {"loading.py", "folders.py", "encoders.py", "vllm.py"}
            assert path.name in loaders, path
            text = ast.unparse(node)
            forbidden = "trust_remote_code=False" in text or "**_NO_CODE" in text
            assert forbidden or (path.name == "folders.py" and "**source" in text), (path, text)
    assert seen >= 7


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
