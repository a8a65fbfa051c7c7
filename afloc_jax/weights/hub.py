"""Models of the Hugging Face hub by name: foreign ones, and model folders of this program, which can be put there."""

import os
import re
from collections.abc import Sequence

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, Path, user_path
from afloc_jax.seals import SEAL
from afloc_jax.weights.calibration import CALIBRATION
from afloc_jax.weights.config import CONFIG
from afloc_jax.weights.folder import CARD, PREPROCESSOR, UNSEEN, WEIGHTS
from afloc_jax.weights.sentence_encoders import MODULES

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
_BESIDE = (
    "config.json",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    PREPROCESSOR,
    MODULES,
    "*/config.json",
)


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


# The files of a model folder; what else lies in it is neither sent nor fetched.
_MODEL_FOLDER = (
    *(CONFIG, WEIGHTS, PREPROCESSOR, UNSEEN, CALIBRATION, SEAL, CARD),
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "LICENSE"),
)


def model_folder_of(given: AnyPath) -> AnyPath:
    """The folder of a model that is given by its folder, or by its name on the hub, "owner/model".

    A name is looked up only where neither the folder nor one of the owner's name is there. Of a model in the cache the
    newest version is fetched where there is a network.

    Raises:
        UserError: the model is neither in the cache nor available.
    """
    name = os.fspath(given)
    if "/" not in name or not looks_like_hub_name(name) or os.path.exists(name.split("/")[0]):
        return given
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_MODEL_FOLDER)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{name}: no such model folder here, not in the Hugging Face cache, and not available from the hub "
            f"({type(error).__name__}); give a folder, or a name such as owner/model where there is a network"
        ) from None


def push_to_hub(folder: AnyPath, name: str, *, private: bool = True, message: str = "Add the model") -> str:
    """Puts a model folder on the Hugging Face hub, as the user that `hf auth login` has made known.

    Args:
        folder: the model folder, on this machine. Only its own files are sent.
        name: "owner/model"; the repository is made if it is not there.
        private: whether a new repository is private. Say what the weights may be used for in README.md before you open
            it: they inherit the terms of the data they were trained on.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UsageError: the folder is no model folder, or the name is none.
        UserError: the hub refuses or cannot be reached; the message says what it said.

    >>> push_to_hub(folder, "owner/model")  # doctest: +ELLIPSIS
    'http.../owner/model/commit/...'
    """
    place = user_path(folder)
    if not (place / CONFIG).is_file():
        raise UsageError(f"{place}: no model folder, for it has no {CONFIG}")
    if "/" not in name or not looks_like_hub_name(name):
        raise UsageError(f"{name!r} is no name of a model on the hub; write owner/model")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        sent = api.upload_folder(
            repo_id=name, folder_path=place, allow_patterns=list(_MODEL_FOLDER), commit_message=message
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{name}: the hub took nothing ({said}); `hf auth login` and try again") from None
    return str(sent.commit_url)
