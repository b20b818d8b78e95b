"""The command `publish`: uploads a dataset to the Hugging Face Hub."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

from instructgen.commands.derive import name_of
from instructgen.commands.interface import command
from instructgen.commands.options import PublishOptions
from instructgen.errors import ConfigError, RunError, StorageError, first_line
from instructgen.schema.progress import Watch
from instructgen.store import is_complete, manifest_in


@dataclass(frozen=True, slots=True)
class Published:
    """The URL of a dataset on the Hub, and the number and size of the uploaded files."""

    url: str
    files: int
    bytes: int


@command(PublishOptions, "data", "name")
def publish(options: PublishOptions, watch: Watch | None = None) -> Published:
    """Upload a dataset to the Hugging Face Hub: kept rows, rejected rows, card and manifest.

    If the dataset comes from a run, its journal (all completions) and seeds are not uploaded.

    Raises:
        ConfigError: the name is invalid, or the token or a package is missing.
        RunError: the folder contains no complete dataset, or a Parquet file was modified.
        StorageError: the Hub cannot be reached, or rejects the upload.
    """
    folder, name = options.data, options.name
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(
            f"{name[:80]!r} is not a valid dataset name.", "Use a name of the form ORG/NAME."
        )
    try:
        from huggingface_hub import HfApi, get_session, get_token
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise ConfigError(
            "publish requires the package huggingface_hub.",
            "Run: pip install 'instructgen[hub]'.",
        ) from None
    token = get_token()
    if not token:
        raise ConfigError(
            "the token for the Hugging Face Hub is missing.",
            "Set HF_TOKEN to a token with write access, or run: hf auth login.",
        )
    if not is_complete(folder):
        raise RunError(f"{folder} contains no complete dataset.", "Create the dataset again.")
    files = [*_files(folder)]
    api = HfApi(token=token)
    # The HTTP client of huggingface_hub is httpx or httpx2, depending on its version.
    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    try:
        url = api.create_repo(name, repo_type="dataset", private=options.private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[str(path.relative_to(folder)) for path in files],
            commit_message=f"{name_of(folder)}: created with instructgen",
        )
    except (HfHubHTTPError, client.HTTPError, OSError, ValueError) as error:
        raise StorageError(
            f"{name}: the upload to the Hub failed ({first_line(error)}).",
            "Check the connection and the token's write access. The local dataset is unchanged.",
        ) from error
    return Published(str(url), len(files), sum(path.stat().st_size for path in files))


def _files(folder: Path) -> list[Path]:
    parts = [folder / part.path for part in manifest_in(folder).files]
    return [*parts, folder / "README.md", folder / "manifest.json"]
