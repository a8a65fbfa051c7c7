"""What is fuzzed: a reader of bytes for every kind of file that comes from strangers, with small valid files of it.

A reader takes the bytes as such a file has them, and checks what comes out as well. It may refuse them with a
`UserError`, which is one of the program's own words. `fault_of` tells everything else: another exception, a result that
breaks its promises, or a message that shows more of the file than a reader of it can use.

A target imports its readers late: whoever fuzzes has to instrument them first, and JAX takes seconds.
"""

import contextlib
import gzip
import io
import json
import traceback
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.hostile import valid_files as valid

LONGEST_MESSAGE = 2000  # letters; `UserError` cuts what is longer
MOST_PIXELS = 1 << 20  # of fuzzed images; benchmarks.largest_files measures what the largest ones cost
ROOT = Path(__file__).resolve().parents[2]

Reader = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        reader: the reader, which may write into the folder.
        seeds: valid files, from which fuzzing starts.
        words: pieces that files of the kind are made of.
    """

    reader: Callable[[Path], Reader]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[str, ...] = ()


def fault_of(reader: Reader, data: bytes) -> tuple[str, str]:
    """What is wrong with how a file is read: a name for the fault, and a traceback. Both are empty if nothing is."""
    from afloc_jax.errors import UserError

    try:
        reader(data)
    except UserError as error:
        if len(str(error)) <= LONGEST_MESSAGE:
            return "", ""
        return f"a message of more than {LONGEST_MESSAGE} letters from {_place(error)}", traceback.format_exc()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also what Rust raises when it panics, and SystemExit
        return f"{type(error).__name__} from {_place(error)}", traceback.format_exc()
    return "", ""


def _place(error: BaseException) -> str:
    """The innermost line of the program in a traceback, or of a target."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT))] or frames
    last = ours[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def _tables(folder: Path) -> Reader:
    from afloc_jax.tables import LONGEST_PATH, read_table, shape_of

    def read(data: bytes) -> None:
        file = folder / ("table.csv.gz" if data.startswith(b"\x1f\x8b") else "table.csv")
        file.write_bytes(data)
        table = read_table(file, ("image",), unique=("image",), names=("image",), known=("text",))
        assert len(table.rows) + len(table.faults) <= shape_of(file)[1], "more rows than the file has"
        for row in table.rows:
            assert set(row) == set(table.columns) and len(row["image"]) <= LONGEST_PATH
        named = [row["image"] for row in table.rows if row["image"]]
        assert len(set(named)) == len(named), "an image that comes twice"

    return read


def _truth(folder: Path, name: str) -> Reader:
    from afloc_jax.evaluation.truth import sample
    from afloc_jax.evaluation.truth.read import read_truth

    file = folder / name
    (folder / "a.png").write_bytes(valid.picture(valid.disc().astype(np.uint8) * 255))
    drawings = (sample.Drawing(), sample.Drawing(compatible=True, boxes=True), sample.Drawing(original=True))

    def read(data: bytes) -> None:
        file.write_bytes(data)
        with mock.patch.object(sample, "LARGEST_PIXELS", MOST_PIXELS):
            for drawing in drawings:
                truths = read_truth(file, drawing, negatives=drawing.original)
                assert len({truth.id for truth in truths}) == len(truths), "two samples of one id"
                for truth in truths:
                    assert truth.mask.shape == (224, 224) and truth.mask.dtype == np.uint8
                    if drawing.original and truth.height:
                        assert truth.original_mask((224, 224)).shape == (truth.height, truth.width)

    return read


def _rle() -> list[dict[str, Any]]:
    return [rle for classes in valid.rle_truth().values() for rle in classes.values()]


def _run_lengths(_: Path) -> Reader:
    from data_pipelines.images import ImageError
    from data_pipelines.regions import CocoRuns, GapRuns, decode_segmentation, run_lengths

    height, width = valid.HEIGHT, valid.WIDTH

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        forms = [{"size": [height, width], "counts": text}]
        try:
            content = json.loads(text)
            forms += [{"size": [height, width], "counts": content}, content]
        except (ValueError, RecursionError):
            pass
        for form in forms:
            try:
                mask = decode_segmentation(form, height, width, "here")
            except Exception as error:
                if type(error).__name__ != "UserError":
                    raise
            else:
                assert mask.shape == (height, width) and mask.max(initial=0) <= 1
                again = CocoRuns({"size": [height, width], "counts": run_lengths(mask > 0)})
                assert np.array_equal(again.mask(height, width), mask > 0), "run lengths that do not come back"
        with contextlib.suppress(ImageError):
            assert GapRuns(text).mask(height, width).shape == (height, width)

    return read


def _heat_maps(folder: Path) -> Reader:
    from afloc_jax.evaluation.truth.heatmap_files import HeatmapFile
    from afloc_jax.evaluation.truth.sample import Truth

    file = folder / "maps.npz"
    truth = Truth("a#1", "left effusion", "Effusion", np.ones((224, 224), np.uint8), "a.png", 24, 20)

    def read(data: bytes) -> None:
        if not data.startswith(b"PK"):  # a member, whose checksum would hide most changes
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr(f"{truth.key}.npy", data)
            data = packed.getvalue()
        file.write_bytes(data)
        maps = HeatmapFile(file)
        maps.check([truth])
        for original, shape in ((False, (224, 224)), (True, (24, 20))):
            (found,) = maps.maps([truth], original)
            assert found.shape == shape

    return read


def _members(content: bytes) -> bytes:
    """The first member of an .npz."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(archive.namelist()[0])


def _small_maps() -> list[bytes]:
    maps = [np.zeros((24, 20), kind) for kind in (np.float32, np.uint8, bool, np.complex64, object)]
    files = [valid.heat_maps(**{"a.png\tleft effusion": heat_map}) for heat_map in maps]
    return [*map(_members, files), *files]


def _images(_: Path, suffix: str) -> Reader:
    from data_pipelines.constants import GreyRule
    from data_pipelines.images import SMALLEST_SIDE, Accepted, decode_image

    rules: tuple[GreyRule, ...] = ("luma", "cv2")
    accepted = Accepted(pixels=MOST_PIXELS, unpacked=1 << 24)

    def read(data: bytes) -> None:
        data = valid.with_right_checksums(data) if data.startswith(b"\x89PNG\r\n\x1a\n") else data
        shapes = set()
        for rule in rules:
            pixels = decode_image(data, f"image{suffix}", rule, accepted)
            assert pixels.dtype == np.uint8 and min(pixels.shape) >= SMALLEST_SIDE
            shapes.add(pixels.shape[0] * pixels.shape[1])
        assert len(shapes) == 1, "two sizes of one image"

    return read


def _use(contents: object) -> None:
    """Reads the values of all tensors among the contents of a weights file."""
    from afloc_jax.weights.tensors import Tensor, fault_of

    if isinstance(contents, Mapping):
        for value in contents.values():
            _use(value)
    elif isinstance(contents, list | tuple):
        for value in contents:
            _use(value)
    elif isinstance(contents, Tensor):
        array = contents.array()
        assert array.shape == contents.shape and array.dtype == contents.dtype
        fault_of(array)


def _weights(folder: Path, name: str, whole: Callable[[bytes], bytes]) -> Reader:
    from afloc_jax.weights.torch_files import read_file

    file = folder / name

    def read(data: bytes) -> None:
        file.write_bytes(whole(data))
        _use(read_file(file))

    return read


def _pickles(folder: Path) -> Reader:
    return _weights(folder, "weights.pth", lambda data: valid.torch_archive(data, b"\0" * 16, b"\0" * 8))


def _torch_files(folder: Path) -> Reader:
    from afloc_jax.weights.sources import read_source

    of_file, file = _weights(folder, "weights.pth", lambda data: data), folder / "weights.pth"

    def read(data: bytes) -> None:
        of_file(data)
        read_source(file)

    return read


def _safetensors(folder: Path) -> Reader:
    def whole(data: bytes) -> bytes:
        if not data.startswith(b"{"):
            return data
        end = data.rfind(b"}") + 1
        return len(data[:end]).to_bytes(8, "little") + data

    return _weights(folder, "weights.safetensors", whole)


def _torch_seeds() -> list[bytes]:
    program = valid.state_pickle({"conv1.weight": 4, "bn1.bias": 2})
    return [
        valid.torch_archive(program, bytes(16), bytes(8)),
        valid.legacy_file(program, ("0", "1"), bytes(16), bytes(8)),
    ]


def _safetensors_seeds() -> list[bytes]:
    whole = valid.safetensors(valid.tensor_header(), bytes(24))
    return [whole, whole[8:]]


def _config(folder: Path) -> Reader:
    from afloc_jax.weights.config import CONFIG, read_config

    def read(data: bytes) -> None:
        (folder / CONFIG).write_bytes(data)
        config = read_config(folder)
        (folder / CONFIG).write_text(json.dumps(config.stored()))
        assert read_config(folder) == config, "settings that do not come back"

    return read


def _tokenizer(folder: Path) -> Reader:
    from data_pipelines.tokens import load_tokenizer, tokenize

    def read(data: bytes) -> None:
        file = folder / ("tokenizer.json" if data.startswith(b"{") else "vocab.txt")
        file.write_bytes(data)
        try:
            tokenizer = load_tokenizer(file)
            tokens = tokenize(tokenizer, ["small left effusions 1.5 cm. no nodule", ""], 12)
            assert tokens["token_ids"].shape == (2, 12)
            assert tokens["token_ids"].min() >= 0 and tokens["token_ids"].max() <= max(tokenizer.get_vocab().values())
        finally:
            file.unlink()

    return read


def _tokenizer_seeds() -> list[bytes]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = {piece: number for number, piece in enumerate(valid.PIECES)}
    tokenizer = Tokenizer(models.WordPiece(vocab=words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return ["".join(f"{piece}\n" for piece in valid.PIECES).encode(), tokenizer.to_str().encode()]


def _texts(*contents: object) -> list[bytes]:
    return [json.dumps(content).encode() for content in contents]


def _pictures(*suffixes: str) -> list[bytes]:
    return [content for name, content in valid.pictures().items() if name.endswith(suffixes)]


NUMBERS = ("NaN", "Infinity", "1e999", "-1", "0.5", "99999999999999999999", "2147483648", "null", "\\ud800")
TARGETS: dict[str, Target] = {
    "tables": Target(
        _tables,
        lambda: [valid.PAIRS.encode(), gzip.compress(valid.PAIRS.encode(), mtime=0), valid.TRUTH_TABLE.encode()],
        ("image", "text", '""', '",', "\n", "\r", "../", ".png,", "\0"),
    ),
    "truth files": Target(
        lambda folder: _truth(folder, "truth.json"),
        lambda: _texts(valid.COCO, valid.rle_truth()),
        (*NUMBERS, "images", "annotations", "categories", "bbox", "segmentation", "size", "counts", "height"),
    ),
    "truth tables": Target(
        lambda folder: _truth(folder, "truth.csv"),
        lambda: [valid.TRUTH_TABLE.encode()],
        ("image", "mask", "finding", "prompt", "patient", "a.png", '"', "\n"),
    ),
    "run lengths": Target(
        _run_lengths,
        lambda: [
            *_texts([63, 99, 318], [[2, 2, 11, 2, 11, 7]], *(one["counts"] for one in _rle())),
            *(one["counts"].encode() for one in _rle() if isinstance(one["counts"], str)),
            b"10 20 30 40",
        ],
        (*NUMBERS, "size", "counts", "[24, 20]"),
    ),
    "heat maps": Target(
        _heat_maps, _small_maps, ("'descr'", "'<f4'", "'|O'", "'fortran_order'", "'shape'", "(24, 20)", "\x93NUMPY")
    ),
    "images": Target(
        lambda folder: _images(folder, ".png"),
        lambda: _pictures(".png", ".jpg", ".tif", ".bmp"),
        ("IHDR", "IDAT", "PLTE", "tRNS", "eXIf", "iCCP", "\xff\xd8", "\xff\xda", "\xff\xc2", "II*\0", "MM\0*", "BM"),
    ),
    "DICOM": Target(
        lambda folder: _images(folder, ".dcm"),
        lambda: [
            valid.dicom(),
            valid.dicom(WindowCenter=100, WindowWidth=50, RescaleSlope=2, RescaleIntercept=-5),
            valid.dicom(PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=7),
        ],
        ("MONOCHROME1", "PALETTE COLOR", "RGB", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.1.99", "\xfe\xff\xdd\xe0"),
    ),
    "pickles": Target(
        _pickles,
        lambda: [valid.state_pickle({"conv1.weight": 4, "bn1.bias": 2})],
        ("ctorch._utils\n_rebuild_tensor_v2\n", "ctorch\nSize\n", "ccollections\nOrderedDict\n", "cbuiltins\nset\n"),
    ),
    "PyTorch files": Target(_torch_files, _torch_seeds, ("PK\x01\x02", "PK\x03\x04", "PK\x05\x06")),
    "safetensors": Target(
        _safetensors, _safetensors_seeds, (*NUMBERS, "dtype", "F32", "BF16", "BOOL", "F8_E4M3", "shape", "data_offsets")
    ),
    "model configs": Target(
        _config,
        lambda: _texts(valid.CONFIG),
        (*NUMBERS, "architecture", "options", "bert", "blocks", "resnet50", "densenet121", "card", "trained_on"),
    ),
    "tokenizers": Target(
        _tokenizer,
        _tokenizer_seeds,
        (*NUMBERS, "WordPiece", "WordLevel", "BPE", "Unigram", "Split", "Regex", "(a+)+$", "added_tokens"),
    ),
}
