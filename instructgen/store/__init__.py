"""Run, dataset and model folders: lock, journal of completions, checkpoints, atomic publishing.

The only package that writes what a run, a dataset or a model consists of, but for the
weights, which their libraries write.
"""

from instructgen.store.checkpoints import (
    ModelRun,
    is_trained,
    read_log,
    read_training,
    root_of,
    step_of,
    training,
)
from instructgen.store.dataset import (
    SPLITS,
    WHOLE,
    Part,
    Writer,
    digest_of,
    find_row,
    is_whole,
    making,
    manifest_bytes,
    read_batches,
    read_made,
    read_manifest,
    read_rows,
    read_samples,
    shape_of,
    splits_of,
    training_split,
    write_dataset,
    writing,
)
from instructgen.store.files import digest_of_file, locked, storage, write_atomic, write_files
from instructgen.store.journal import (
    FORMAT,
    Entry,
    Run,
    is_run,
    read_info,
    read_seed_rows,
    read_sessions,
)
from instructgen.store.spool import Spool

__all__ = [
    "FORMAT",
    "SPLITS",
    "WHOLE",
    "Entry",
    "ModelRun",
    "Part",
    "Run",
    "Spool",
    "Writer",
    "digest_of",
    "digest_of_file",
    "find_row",
    "is_run",
    "is_trained",
    "is_whole",
    "locked",
    "making",
    "manifest_bytes",
    "read_batches",
    "read_info",
    "read_log",
    "read_made",
    "read_manifest",
    "read_rows",
    "read_samples",
    "read_seed_rows",
    "read_sessions",
    "read_training",
    "root_of",
    "shape_of",
    "splits_of",
    "step_of",
    "storage",
    "training",
    "training_split",
    "write_atomic",
    "write_dataset",
    "write_files",
    "writing",
]
