"""Functions that run in the child processes which the tests of this folder kill."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Callable
from typing import Any


def die() -> None:
    """Kill this process as a power failure would: no handler and no cleanup run."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(count: int, moment: str, *places: tuple[Any, str]) -> None:
    """Make the process die before or after the n-th call, from now on, of these functions."""
    seen = 0

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            is_due = seen == count
            if is_due and moment == "before":
                die()
            result = original(*args, **kwargs)
            if is_due and moment == "after":
                die()
            return result

        return call

    for owner, name in places:
        setattr(owner, name, deadly(getattr(owner, name)))


DURABLE = (
    (os, "fsync"),
    (pathlib.Path, "replace"),
    (pathlib.Path, "unlink"),
)


def generate(
    seeds: str,
    target: int,
    out: str,
    in_flight: int,
    calls: str,
    pace_s: float = 0.0,
    at: int = 0,
    moment: str = "before",
    order: str = "issued",
    shuffled: bool = False,
    method: str = "",
) -> None:
    """Generate; write a byte to ``calls`` per request, and wait ``pace_s`` per answer.

    If ``shuffled`` is true, the answers arrive in a random order. With a method, the model is a
    chat model, and ``seeds`` may be empty.
    """
    import instructgen
    from instructgen.plugins import load_plugin

    os.environ |= {"CALLS": calls, "PACE_S": str(pace_s), "SHUFFLED": "1" * shuffled}
    os.environ["CHAT"] = method
    load_plugin(_SCRIPTED)
    if at:
        kill_at(at, moment, (os, "write"), (os, "open"), *DURABLE)
    recipe = {"generate": {"commit_order": order}, "filters": FILTERS}
    more: dict[str, Any] = {}
    what, _, place = seeds.partition("=")
    if what == "documents":
        seeds, more = "", {"documents": [place]}
    elif what == "desk":
        desk = pathlib.Path(place)
        seeds = str(desk / "tasks.jsonl")
        more = {"tools": desk / "tools.json", "environment": desk / "desk.py"}
    options: dict[str, Any] = {"engine": "scripted", "recipe": recipe, "in_flight": in_flight}
    if method:
        options["method"] = method
        options["settings"] = {"generate.acceptance_floor": 0}
    instructgen.generate(seeds or (), target, out, **options, **more)


def rebuild(out: str) -> None:
    """Rebuild a run of `generate`; raise AssertionError if the dataset changes."""
    import instructgen
    from instructgen.plugins import load_plugin

    os.environ["CHAT"] = ""
    load_plugin(_SCRIPTED)
    assert instructgen.rebuild(out).unchanged


_SCRIPTED = pathlib.Path(__file__).with_name("scripted_engine.py")
# A cheap filter, and filters that decide by earlier rows.
FILTERS = [{"name": n} for n in ("length", "novelty", "instance", "near_duplicate")]


def derive(command: str, out: str, recipe: str, inputs: list[str], at: int) -> None:
    """Make a dataset from others in small steps; die at the n-th step that changes the disk."""
    import instructgen
    import instructgen.commands.merge as merging
    from instructgen.similarity.temporary import RowFile

    merging._ROWS_WAITING, merging._ROWS_PER_BUCKET = 5, 20
    kill_at(at, "before", (RowFile, "tables"), (RowFile, "add"), *DURABLE)
    if command == "import":
        instructgen.import_data(inputs[0], out, license="MIT", on_bad_row="reject")
    elif command == "merge":
        instructgen.merge(inputs, out, recipe=recipe)
    else:
        instructgen.curate(inputs[0], out, recipe=recipe)


def train(
    trainer: str,
    data: str,
    model: str,
    out: str,
    options: dict[str, Any],
    at_step: int = -1,
    at_file: str = "",
) -> None:
    """Train; die when the log has an entry for ``at_step``, or before an fsync of ``at_file``."""
    import instructgen
    from instructgen.store import ModelRun

    log, fsync = ModelRun.log, os.fsync

    def deadly(self: Any, entry: Any) -> None:
        log(self, entry)
        if entry["step"] == at_step:
            die()

    def deadly_fsync(descriptor: int) -> None:
        path = pathlib.Path(f"/proc/self/fd/{descriptor}").readlink()
        if at_file and str(path).endswith(f"/{at_file}"):
            die()
        fsync(descriptor)

    ModelRun.log = deadly  # type: ignore[method-assign]
    os.fsync = deadly_fsync  # type: ignore[assignment]
    instructgen.train(trainer, data, out, model=model, **options)


def _redirect(stdin: str, stdout: str, stderr: str) -> None:
    """Replace standard input and output by files."""
    import sys

    for handle, path, mode in ((0, stdin, "rb"), (1, stdout, "wb"), (2, stderr, "wb")):
        with pathlib.Path(path).open(mode) as file:
            os.dup2(file.fileno(), handle)
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape")


def script(code: str, words: list[str], folder: str, stderr: str, stdout: str) -> None:
    """Run Python code as a script with arguments in a folder, with files as output."""
    import sys

    _redirect(os.devnull, stdout, stderr)
    os.chdir(folder)
    sys.argv = ["script", *words]
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})


def command(
    words: list[str],
    folder: str,
    stderr: str,
    stdout: str = os.devnull,
    threads: int = 1,
    stdin: str = os.devnull,
    site: str = "",
) -> None:
    """Run a command line in a folder, with files as standard input and output.

    ``site`` is a folder of installed packages, in addition to those of the environment.
    """
    import sys

    import torch

    from instructgen.__main__ import main

    _redirect(stdin, stdout, stderr)
    os.chdir(folder)
    if site:
        from instructgen.plugins import classes

        sys.path.insert(0, site)
        # The steps of pipelines are processes of their own.
        os.environ["PYTHONPATH"] = site
        classes.cache_clear()
    torch.set_num_threads(threads)
    sys.argv = ["instructgen", *words]
    main()
