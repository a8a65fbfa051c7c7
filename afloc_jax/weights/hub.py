"""Models of the Hugging Face hub by name, from the local cache or, where they are not in it, from the network."""

import re
from collections.abc import Sequence

from afloc_jax.errors import UserError
from afloc_jax.files import Path

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
_BESIDE = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json")


def looks_like_hub_name(source: str) -> bool:
    """Whether `source` can be a name such as "bert-base-uncased" or "emilyalsentzer/Bio_ClinicalBERT"."""
    return bool(_NAME.fullmatch(source)) and not source.endswith(_FILES)


def find_on_hub(name: str, files: Sequence[str]) -> Path:
    """The folder in the cache that holds a model of the hub: its config, its tokenizer and one of `files`.

    Args:
        name: "owner/model", or "model" for the oldest ones.
        files: alternative file names (such as weights), the preferred one first.

    Raises:
        UserError: the model is not in the cache and cannot be downloaded, or has none of `files`.
    """
    # Imported here because it takes seconds, and most sources are files.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def complete(folder: Path) -> bool:
        return any((folder / file).is_file() for file in files)

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if complete(folder):
            return folder
    except (LocalEntryNotFoundError, OSError):
        pass
    try:
        for file in files:
            folder = Path(snapshot_download(name, allow_patterns=[*_BESIDE, file]))
            if complete(folder):
                return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = type(error).__name__
        raise UserError(
            f"{name}: no such file or folder here, not in the Hugging Face cache, and not available from the hub "
            f"({reason}); give a folder, or run `hf download {name}` where there is a network"
        ) from None
    raise UserError(f"{name}: the hub has neither {' nor '.join(files)} for it; give another model")
