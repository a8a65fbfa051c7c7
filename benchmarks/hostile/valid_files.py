"""Small valid files of every kind that the program reads from strangers; fuzzing and hostile inputs start from them.

Nothing here is of a patient. Checkpoints are put together by hand, so that nothing imports PyTorch.
"""

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 20  # of the first image of truth files; the second has them the other way round
PAIRS = "image,text,patient,split\n" + "".join(
    f'{number}.png,"Small left effusion {number}, seen again. Heart is normal.",p{number},train\n'
    for number in range(6)
)
TRUTH_TABLE = "image,mask,finding,prompt,patient\na.png,a.png,effusion,left effusion,p1\nb.png,,effusion,,p2\n"
COCO: dict[str, Any] = {
    "images": [
        {"id": 1, "path": "a.png", "height": HEIGHT, "width": WIDTH, "patient": "p1"},
        {"id": 2, "file_name": "b.png", "height": WIDTH, "width": HEIGHT},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "label_text": "left effusion", "bbox": [3, 4, 8, 9]},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [2, 2, 9, 5], "segmentation": [[2, 2, 11, 2, 11, 7]]},
        {"id": 3, "image_id": 2, "category_id": 2, "segmentation": {"size": [WIDTH, HEIGHT], "counts": [63, 99, 318]}},
    ],
    "categories": [{"id": 1, "name": "Effusion"}, {"id": 2, "name": "Edema"}],
}
COCO_KEYS = ("a.png\tleft effusion", "b.png\teffusion", "b.png\tedema")  # of the heat maps of its samples
PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "##s", "small", "left", "effusion", "no", "nodule")
CONFIG: dict[str, Any] = {  # of a model folder
    "format_version": 1,
    "name": "tiny",
    "seed": 3,
    "architecture": {
        "projection_dim": 32,
        "image": {
            "backbone": "resnet_small",
            "input_size": 64,
            "options": {"widths": [8, 16, 16], "strides": [1, 2, 2], "stem_width": 8},
        },
        "text": {"bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}, "last_layers": 2},
    },
    "preprocessing": {"image_size": 224, "grey": "luma"},
    "prompts": {"max_tokens": 24},
    "localization": {"sigma": 1.5, "cells": "tiles"},
    "trained_on": ["phantom"],
    "card": {"data": "four sentences"},
}


def radiograph(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Noise [height, width] uint8."""
    return np.random.default_rng(seed).integers(1, 255, (height, width)).astype(np.uint8)


def disc(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask [height, width] bool of a disc in the middle."""
    rows, columns = np.ogrid[:height, :width]
    return np.asarray((rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 3) ** 2)


def rle_truth() -> dict[str, Any]:
    """CheXlocalize's run lengths of two images, compressed and not."""
    from data_pipelines.regions import run_lengths

    size = [HEIGHT, WIDTH]
    edges = np.flatnonzero(np.diff(disc().ravel(order="F"), prepend=False, append=False))
    runs = np.diff([0, *edges, HEIGHT * WIDTH]).tolist()
    return {
        "p1_study1_view1": {"Effusion": {"size": size, "counts": run_lengths(disc())}},
        "p2_study1_view1": {
            "Effusion": {"size": size, "counts": runs},
            "Edema": {"size": size, "counts": run_lengths(np.zeros((HEIGHT, WIDTH), bool))},
        },
    }


def heat_maps(*keys: str, **changed: np.ndarray) -> bytes:
    """An .npz with a map of the square for each key."""
    file = io.BytesIO()
    maps = np.random.default_rng(0).random((len(keys), 224, 224)).astype(np.float32)
    np.savez(file, allow_pickle=True, **{**dict(zip(keys, maps, strict=True)), **changed})
    return file.getvalue()


def picture(pixels: np.ndarray, kind: str = "PNG", **how: Any) -> bytes:
    """The pixels as a file of one of Pillow's formats."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **how)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_right_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them, so that changes of it reach the decoder."""
    parts, position = [png[:8]], 8
    while position + 12 <= len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        if position + 12 + length > len(png):
            break
        parts.append(png_chunk(png[position + 4 : position + 8], png[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join([*parts, png[position:]])


def pictures() -> dict[str, bytes]:
    """Grey and coloured files of the formats that are read, by name."""
    grey, colour = radiograph(), np.stack([radiograph(seed) for seed in range(3)], -1)
    deep = grey.astype(np.uint16) * 200
    palette = io.BytesIO()
    Image.fromarray(grey).convert("P").save(palette, "PNG", bits=4)
    return {
        "grey.png": picture(grey),
        "deep.png": picture(deep),
        "colour.png": picture(colour),
        "palette.png": palette.getvalue(),
        "one_bit.png": picture(grey > 99),
        "grey.jpg": picture(grey, "JPEG"),
        "scans.jpg": picture(colour, "JPEG", progressive=True),
        "grey.tif": picture(grey, "TIFF"),
        "packed.tif": picture(deep, "TIFF", compression="tiff_lzw"),
        "float.tif": picture(grey.astype(np.float32), "TIFF"),
        "grey.bmp": picture(grey, "BMP"),
        "colour.bmp": picture(colour, "BMP"),
        "grey.dcm": dicom(),
    }


def dicom(**changed: Any) -> bytes:
    """A grey DICOM file; `changed` replaces or adds elements by keyword."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    file = io.BytesIO()
    dataset = FileDataset(file, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = HEIGHT, WIDTH, 1
    dataset.PhotometricInterpretation, dataset.BitsAllocated, dataset.BitsStored = "MONOCHROME2", 8, 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.PixelData = 7, 0, radiograph().tobytes()
    for keyword, value in changed.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def state_pickle(counts: Mapping[str, int]) -> bytes:
    """The pickle that torch.save writes of a state dict of float32 vectors, by their names and lengths."""
    parts = [b"\x80\x02}("]
    for number, (name, count) in enumerate(counts.items()):
        length = b"J" + struct.pack("<i", count)
        identity = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(number)) + _text("cpu") + length
        storage = identity + b"tQK\x00" + length + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
        parts.append(_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage)
    return b"".join([*parts, b"u."])


def torch_archive(program: bytes, *storages: bytes) -> bytes:
    """A file in the zip format of torch.save, with its pickle and the bytes of its storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for number, storage in enumerate(storages):
            archive.writestr(f"archive/data/{number}", storage)
    return file.getvalue()


def legacy_file(program: bytes, keys: tuple[str, ...] = (), *storages: bytes) -> bytes:
    """A file in the format of torch.save before PyTorch 1.6."""
    from afloc_jax.weights.torch_files import _LEGACY_MAGIC, _LEGACY_PROTOCOL

    head = [pickle.dumps(part, protocol=2) for part in (_LEGACY_MAGIC, _LEGACY_PROTOCOL, {"little_endian": True})]
    values = [struct.pack("<q", len(storage) // 4) + storage for storage in storages]
    return b"".join([*head, program, pickle.dumps([*keys], protocol=2), *values])


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A .safetensors file with this header, a text or what becomes one."""
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def tensor_header() -> dict[str, Any]:
    """The header of a .safetensors file with two tensors in 24 bytes."""
    return {
        "__metadata__": {"format": "pt"},
        "conv1.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "bn1.bias": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
    }
