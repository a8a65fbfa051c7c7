"""The tokenizer of a run: which one it takes, the copy in its working directory, and what if that is removed."""

import dataclasses

from tokenizers import Tokenizer

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, fetched, read_json, write_json
from afloc_jax.provenance import hash_of
from afloc_jax.seals import Verification, write_seal
from afloc_jax.training import start, workdir
from afloc_jax.training.loop import Data
from afloc_jax.training.processes import say
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.folder import is_tokenizer_file, read_unseen, write_unseen
from data_pipelines import tokens, vocabulary
from data_pipelines.reading import RecordSource


def opened(
    config: RunConfig, folder: Path, source: RecordSource
) -> tuple[Tokenizer, vocabulary.VocabularyAccount | None]:
    """The tokenizer saved in the workdir; on the first run that of the config or of `init_from`, or a learned one.

    Returns the account of learning too, where it was learned now. A saved one that was removed is made again.

    Raises:
        UsageError: words are to be left out of a vocabulary that is not learned.
        UserError: the saved one was changed, or was removed and would be another one now.
    """
    kept = folder / workdir.TOKENIZER
    if is_kept(folder):
        Verification(fetched(kept), is_tokenizer_file).begin().finish()
        return tokens.load_tokenizer(fetched(kept)), None
    made = _first(config, source)
    if (folder / workdir.CONFIG).exists():
        before = read_json(folder / workdir.RUN, f"put a copy of {kept} back").get("vocabulary_sha256")
        if before != hash_of_vocabulary(made[0]):
            raise UserError(
                f"{kept} is gone, and nothing says that its vocabulary would be the same now; put a copy back, or "
                "choose another --workdir"
            )
        say(f"{kept} was gone: the same vocabulary is written again")
    return made


def is_kept(folder: Path) -> bool:
    """Whether the workdir belongs to a run and has its tokenizer."""
    needed = (folder / workdir.CONFIG, folder / workdir.TOKENIZER / tokens.TOKENIZER_FILE)
    return all(path.exists() for path in needed)


def hash_of_vocabulary(tokenizer: Tokenizer) -> str:
    """The SHA-256 of the pieces and their ids, by which a vocabulary that is made again is known."""
    return hash_of(tokenizer.get_vocab())


def _first(config: RunConfig, source: RecordSource) -> tuple[Tokenizer, vocabulary.VocabularyAccount | None]:
    """The tokenizer of the config or of `init_from`, or a learned one with the account of learning."""
    text, data = config.model.text, config.data
    if given := text.tokenizer or start.model_folder(config):
        if data.exclude_words:
            raise UsageError(
                f"config.data.exclude_words = {data.exclude_words}: this run takes the vocabulary of {given} and "
                "learns none, so no word can be left out"
            )
        return tokens.load_tokenizer(given), None
    excluded = vocabulary.read_words(data.exclude_words) if data.exclude_words else frozenset()
    rule = vocabulary.VocabularyRule(data.vocabulary_reports, data.vocabulary_patients, excluded)
    size = text.structure.vocab_size if "vocab_size" in text.bert else tokens.LEARNED_VOCABULARY
    return vocabulary.learn_vocabulary(source, rule, size)


def keep(config: RunConfig, folder: Path, data: Data) -> None:
    """Writes the tokenizer of a run to its workdir, sealed, and tells how it was learned if it was now."""
    place = folder / workdir.TOKENIZER
    tokens.save_tokenizer(data.tokenizer, place)
    write_unseen(place, unseen_pieces(config, data))
    if data.vocabulary:
        say(str(data.vocabulary))
        write_json(place / workdir.LEARNED, dataclasses.asdict(data.vocabulary))
    write_seal(place)


def unseen_pieces(config: RunConfig, data: Data) -> frozenset[str] | None:
    """The pieces of a learned vocabulary that neither the training reports hold nor those of the model it started from.

    None for the vocabulary of a text encoder that was trained elsewhere, on texts that are not known here.
    """
    if config.model.text.tokenizer:
        return None
    started_from = start.model_folder(config)
    before = read_unseen(fetched(started_from)) if started_from else frozenset(data.tokenizer.get_vocab())
    if before is None:
        return None
    reports = (data.training[row].sentences for row in range(len(data.training)))
    return before & vocabulary.unseen_pieces(data.tokenizer, reports)
