"""The command publish: a finished dataset to the Hub, with its card and its rejected rows."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path

from instructgen.errors import ConfigError, RunError, StorageError
from instructgen.store import is_whole, read_manifest


@dataclass(frozen=True, slots=True)
class Published:
    """Where a dataset lies now, and its size."""

    url: str
    files: int
    bytes: int


def publish(data: str | Path, name: str, *, private: bool = False) -> Published:
    """Put a dataset on the Hub: parts, rejected parts, card and manifest.

    Args:
        data: a dataset or run folder; a run's journal and seeds stay here.
        name: ORG/NAME, made if it is not there.
        private: whether only its owners see it, if it is made.

    Raises:
        ConfigError: the name is none, there is no token, or a package is missing.
        RunError: there is no complete dataset, or a part was changed.
        StorageError: the Hub cannot be reached or refuses.
    """
    folder = Path(data)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(f"{name[:80]!r} is no name for the Hub.", "Use ORG/NAME.")
    try:
        from huggingface_hub import HfApi, get_session, get_token
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise ConfigError(
            "To publish, the package huggingface_hub is needed.",
            "Run: pip install 'instructgen[hub]'.",
        ) from None
    token = get_token()
    if not token:
        raise ConfigError(
            "there is no token for the Hub.",
            "Set HF_TOKEN to one that may write, or run: hf auth login.",
        )
    if not is_whole(folder):
        raise RunError(f"{folder} holds no complete dataset.", "Make it again.")
    files = [*_files(folder)]
    api = HfApi(token=token)
    # Its client is httpx or httpx2, by its version; errors of the line are that one's.
    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    try:
        url = api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[str(path.relative_to(folder)) for path in files],
            commit_message=f"{folder.resolve().name}: made with instructgen",
        )
    except (HfHubHTTPError, client.HTTPError, OSError, ValueError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise StorageError(
            f"{name}: the Hub cannot be reached or refuses ({said}).",
            "Check the connection and that the token may write there; nothing is lost.",
        ) from error
    return Published(str(url), len(files), sum(path.stat().st_size for path in files))


def _files(folder: Path) -> list[Path]:
    manifest = read_manifest(folder) or {"files": []}
    return [
        *(folder / file["path"] for file in manifest["files"]),
        folder / "README.md",
        folder / "manifest.json",
    ]
