"""The three levels of images and texts, with one dataclass for each side.

A report gives units at three levels (words, sentences, the report). An image gives features at three levels (a shallow
map, a deep map, a global vector). Each level of the text is contrasted with one of the image:

    level       image side            text side
    word        ImageLevels.shallow   TextLevels.words
    sentence    ImageLevels.deep      TextLevels.sentences
    report      ImageLevels.whole     TextLevels.report
"""

from typing import Literal, get_args

import flax.struct
from jaxtyping import Array, Float, Int, UInt32

LevelName = Literal["report", "sentence", "word"]
LEVELS: tuple[LevelName, ...] = get_args(LevelName)


@flax.struct.dataclass
class ImageLevels:
    """The output of an image encoder, projected to the shared width D. `whole` is the global vector.

    `shallow_factors`, returned on request, are the shallow map before its projection [B, H1, W1, F] and the projection
    [F, D], whose product is `shallow`. Where F < D, the word level is cheaper from them (losses/low_rank.py).
    """

    shallow: Float[Array, "B H1 W1 D"]
    deep: Float[Array, "B H2 W2 D"]
    whole: Float[Array, "B D"]
    shallow_factors: tuple[Float[Array, "B H1 W1 F"], Float[Array, "F D"]] | None = None


@flax.struct.dataclass
class TextHashes:
    """Hashes of 64 bits of the texts as drawn, each as two numbers: equal texts have equal hashes.

    Made by `data_pipelines.hashes.text_hashes`.
    """

    report: UInt32[Array, "*G B 2"]
    sentences: UInt32[Array, "*G B S 2"]  # 0, 0 where a report has no further sentence


@flax.struct.dataclass
class MadeCaptions:
    """The n captions that were made from each report by changing its sentences: hard negatives.

    Sentence s of a made caption, unit s + 1, is sentence s of the report, changed or not. `hashes` has the hashes of a
    changed sentence as read and in plain words (`data_pipelines.negatives`); 0 where it is not changed.
    """

    sentences: Float[Array, "*G B n T D"]
    sentence_count: Int[Array, "*G B n"]
    hashes: UInt32[Array, "*G B n S 2 2"]


@flax.struct.dataclass
class TextLevels:
    """The output of a text encoder. `word_count` and `sentence_count` are the numbers of valid units, which come first.

    Unit 0 of both sequences is `[CLS]`. The losses ignore units from the count on.
    """

    words: Float[Array, "B T D"]
    sentences: Float[Array, "B S D"]
    report: Float[Array, "B D"]
    word_count: Int[Array, " B"]
    sentence_count: Int[Array, " B"]
    hashes: TextHashes | None = None  # for the losses: which reports are twins
    made: MadeCaptions | None = None  # for the losses: hard negatives


@flax.struct.dataclass
class TokenBatch:
    """Token ids and the segment ids that merge them: pieces -> words -> sentences -> report.

    The ids are computed with the tokens on the host (data_pipelines/tokens.py). Models merge by array operations inside
    jit. Every array has the same number of slots L; the index of a word or sentence is always below L.
    """

    token_ids: Int[Array, "B L"]  # 0 is padding
    word_ids: Int[Array, "B L"]  # the word each piece belongs to: [CLS] 0, then words, [SEP] last; padding -1
    # The sentence that each WORD slot belongs to: [CLS] 0, sentences 1.., [SEP] last; periods and padding -1.
    sentence_ids: Int[Array, "B L"]
    word_count: Int[Array, " B"]  # [CLS] and the words, without [SEP]
    sentence_count: Int[Array, " B"]  # [CLS] and the sentences, without [SEP]
