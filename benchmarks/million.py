"""Measures import, merge, curate and dedup of a million rows: seconds and peak memory.

    python benchmarks/million.py [--rows 1000000] [--folder FOLDER] [--out benchmarks/million.json]

The rows are real rows (Dolly, Alpaca Libre, OASST) and recombinations of two of them; see
curate.py. Each command runs in its own process. `import` runs twice: once the language is given,
and once it identifies the language of each row. The data is in the folder INSTRUCTGEN_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curate import recombined

CODE = """
import json, resource, sys, time
import instructgen
name, arguments, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
begun = time.perf_counter()
result = getattr(instructgen, name)(*arguments, **options)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "rows": result.rows,
    "rejected": result.rejected,
    "seconds": round(time.perf_counter() - begun, 1),
    "peak_mib": round(peak / 1024),
}))
"""


def measured(name: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Run a command of instructgen in its own process."""
    words = [json.dumps(value, default=str) for value in (arguments, options)]
    command = [sys.executable, "-c", CODE, name, *words]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    print(name, options, result, flush=True)
    return result


def main() -> None:
    """Measure all commands, and write the JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="keep the datasets in this folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = options.folder or Path(work)
        folder.mkdir(exist_ok=True)
        lines, data = folder / "rows.jsonl", folder / "data"
        with lines.open("w") as file:
            for s in recombined(options.rows):
                row = {"instruction": s.instruction, "input": s.input, "output": s.output}
                file.write(json.dumps(row) + "\n")
        terms = {"license": "CC-BY-4.0", "source": "rows"}
        given = "import, language given"
        runs = {given: measured("import_data", lines, data, language="en", **terms)}
        runs["merge"] = measured("merge", [data], folder / "mix")
        runs["dedup, exact and minhash"] = measured(
            "dedup", [data], folder / "unique", how=["exact", "minhash"]
        )
        runs["curate, default recipe"] = measured("curate", data, folder / "kept", recipe="default")
        runs["import"] = measured("import_data", lines, folder / "identified", **terms)
    merging = runs["merge"]["seconds"]
    result = {
        "runs": runs,
        "merge_to_import": {
            name: round(merging / runs[name]["seconds"], 2) for name in (given, "import")
        },
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {n: version(n) for n in ("instructgen", "numpy", "pyarrow", "numba")},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
