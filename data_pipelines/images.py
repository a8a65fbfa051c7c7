"""Reading of image files as grey uint8 arrays, and the geometry of the padded square with its exact inverse.

All images are read by `read_image`. Boxes, masks, points and heat maps are mapped between the original image and the
model's square by `Geometry`.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Integer, Real, Shaped, UInt8
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from afloc_jax.errors import UserError
from afloc_jax.files import LARGEST_FILE, read_regular
from data_pipelines import dicom
from data_pipelines.constants import IMAGE_SIZE, Equalization, GreyRule
from data_pipelines.encoded import is_cut_png, is_interlaced_png, is_short_png, lacks_palette, unpacks_beyond

SMALLEST_SIDE = 8  # pixels; anything smaller is a broken export, not a radiograph
LARGEST_PIXELS = 170_000_000  # below Pillow's limit for decompression bombs; large mammograms have 30 million pixels
MOST_SCANS = 64  # of a progressive JPEG; encoders write about ten
_SCAN = b"\xff\xda"  # the marker of a scan, which no coded pixels contain
DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", *DICOM_SUFFIXES)  # what `read_image` takes


class ImageError(UserError):
    """An unusable image file. The message names the file and the reason."""


@dataclass(frozen=True)
class Accepted:
    """What is decoded: the formats beside DICOM, and the largest image.

    Pillow would start other programs for some of its formats, so every call of `Image.open` names formats.
    """

    formats: tuple[str, ...] = ("PNG", "JPEG", "TIFF", "BMP")
    pixels: int = LARGEST_PIXELS
    unpacked: int = LARGEST_FILE  # bytes of a DICOM file that is packed as a whole


ANY_IMAGE = Accepted()


def read_image(path: str | Path, rule: GreyRule = "luma") -> UInt8[np.ndarray, "H W"]:
    """Decodes a PNG, JPEG, TIFF, BMP or DICOM file completely.

    Colour becomes luma (Rec. 601) and an alpha channel is ignored; EXIF orientation is applied. Pixels deeper than 8
    bits are scaled linearly from the image's own minimum and maximum to 0..255. DICOM needs the `pydicom` package;
    windows and modality tables are applied, MONOCHROME1 is inverted.

    With the rule "cv2" the pixels are those of `cv2.imread(path, 0)`, as in the release: grey values of colour files
    differ in few pixels, mostly by a level or two, and of deeper pixels the high byte is kept. OpenCV reads no DICOM
    file; those are read as above.

    Returns:
        [height, width] uint8, bright = dense.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, smaller than 8 x 8 pixels, larger than
            LARGEST_PIXELS or files.LARGEST_FILE, no regular file, or has pixels that are no finite numbers.
    """
    path = Path(path)
    return decode_image(_read_bytes(path), path.name, rule)


def decode_image(
    data: bytes, name: str, rule: GreyRule = "luma", accepted: Accepted = ANY_IMAGE
) -> UInt8[np.ndarray, "H W"]:
    """`read_image` for the bytes of a file. `name` is used in errors and to recognise DICOM without a header."""
    if not data:
        raise ImageError(f"{name}: the file is empty")
    if data[128:132] == b"DICM" or name.lower().endswith(DICOM_SUFFIXES):
        pixels = _decode_dicom(data, name, accepted)
    elif rule == "cv2":
        pixels = _decode_by_opencv(data, name, accepted)
    else:
        pixels = grey(_decode_picture(data, name, accepted), name)
    return np.ascontiguousarray(not_too_small(pixels, name))


def not_too_small(pixels: Shaped[np.ndarray, "H W *c"], name: str) -> Shaped[np.ndarray, "H W *c"]:
    """The pixels. Raises ImageError for sides of less than `SMALLEST_SIDE`."""
    height, width = pixels.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels is too small (at least {SMALLEST_SIDE} x {SMALLEST_SIDE})")
    return pixels


def read_label_image(path: str | Path) -> Integer[np.ndarray, "H W"]:
    """A label image [height, width], whose pixels are class numbers: grey values, or indices of a palette image.

    Raises ImageError for a picture of several channels, whose pixels are colours.
    """
    path = Path(path)
    picture = _decode_picture(_read_bytes(path), path.name)
    array = np.asarray(picture)
    if array.ndim != 2:
        raise ImageError(f"{path.name}: a mask of classes must have one channel, this one is {picture.mode}")
    return array


def read_mask(path: str | Path, value: int | range | None = None) -> Bool[np.ndarray, "H W"]:
    """A mask [height, width] bool from a picture of any mode: True where any channel except alpha is not 0.

    With `value` the file is a label image, and the mask is True where a channel (or the index of a palette image)
    equals `value` or lies in that range. Raises ImageError for an unusable file.
    """
    path = Path(path)
    picture = _decode_picture(_read_bytes(path), path.name)
    if picture.mode in ("RGBA", "LA", "PA"):
        picture = picture.convert("RGB" if picture.mode == "RGBA" else "L")
    array = np.asarray(picture)  # a palette image gives indices; index 0 is the background, whatever its colour
    if isinstance(value, range):
        hit = (array >= value.start) & (array < value.stop)
    else:
        hit = array > 0 if value is None else array == value
    return np.asarray(hit.any(axis=-1) if hit.ndim == 3 else hit, np.bool_)


def equalized(image: UInt8[np.ndarray, "H W"], how: Equalization) -> UInt8[np.ndarray, "H W"]:
    """The image after histogram equalisation.

    - "cv2": `cv2.equalizeHist`, as in MIMIC-CXR-JPG.
    - "release": grey values become their share of the pixels that are not 0, times 255, rounded down. The shares are
      those of 256 bins between the least and the largest of these pixels, interpolated between the middles of bins
      (scikit-image's `equalize_hist` with such a mask). An image of zeros stays as it is.
    """
    if how == "cv2":
        return np.asarray(cv2.equalizeHist(image), np.uint8)
    seen = image[image != 0] / 255.0 if how == "release" else image[:0]
    if not seen.size:
        return image
    counts, edges = np.histogram(seen, bins=256)
    shares = np.interp(np.arange(256) / 255.0, (edges[:-1] + edges[1:]) / 2, counts.cumsum() / seen.size)
    table = (255 * shares).astype(np.uint8)
    return np.asarray(table[image])


def encode_png(image: UInt8[np.ndarray, "H W *channels"] | Bool[np.ndarray, "H W"]) -> bytes:
    """The PNG bytes of a picture (colour in OpenCV's order) or of a mask (stored as 0 and 255)."""
    array = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
    return cv2.imencode(".png", array)[1].tobytes()


@dataclass(frozen=True)
class Geometry:
    """The mapping between an image of height x width pixels and a square of `side` pixels.

    The longest side is scaled to `side`. The other side is scaled by the same factor and floored. Zeros fill the rest;
    of an odd number of rows or columns the smaller half is at the top or left. Coordinates are continuous: pixel
    (row r, column c) covers [c, c+1] x [r, r+1], so the corners of the image are (0, 0) and (width, height).

    >>> geometry = Geometry(height=100, width=200, side=50)
    >>> geometry.inner_height, geometry.top  # 25 rows of image below 12 rows of padding
    (25, 12)
    >>> geometry.box_to_square([20, 10, 40, 20])  # x, y, width, height
    array([ 5, 14, 10,  5])
    """

    height: int
    width: int
    side: int = IMAGE_SIZE

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.side) < 1:
            raise ValueError(f"an image of {self.width} x {self.height} has no square of side {self.side}")

    @property
    def scale(self) -> float:
        """The number of square pixels per original pixel along the longest side."""
        return self.side / float(max(self.height, self.width))

    @property
    def inner_height(self) -> int:
        """Rows of the square that show the image."""
        return self.side if self.height >= self.width else max(1, int(self.height * self.scale))

    @property
    def inner_width(self) -> int:
        """Columns of the square that show the image."""
        return self.side if self.width > self.height else max(1, int(self.width * self.scale))

    @property
    def top(self) -> int:
        """Rows of padding above the image."""
        return (self.side - self.inner_height) // 2

    @property
    def left(self) -> int:
        """Columns of padding left of the image."""
        return (self.side - self.inner_width) // 2

    def inner(self, square: Shaped[np.ndarray, "rows columns *rest"]) -> Shaped[np.ndarray, "h w *rest"]:
        """The part of a [side, side, ...] array that shows the image, as a view [inner_height, inner_width, ...]."""
        if square.shape[:2] != (self.side, self.side):
            raise ValueError(f"expected [{self.side}, {self.side}], got {list(square.shape)}")
        return square[self.top : self.top + self.inner_height, self.left : self.left + self.inner_width]

    def to_square(self, image: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "S S"]:
        """The image [height, width] as a square [side, side] of its type, by area interpolation, padded by zeros."""
        if image.shape != (self.height, self.width):
            raise ValueError(f"this geometry is for [{self.height}, {self.width}], got {list(image.shape)}")
        square = np.zeros((self.side, self.side), image.dtype)
        size = (self.inner_width, self.inner_height)
        self.inner(square)[...] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return square

    def mask_to_square(self, mask: Shaped[np.ndarray, "H W"]) -> Bool[np.ndarray, "S S"]:
        """The mask [height, width] as a square [side, side] bool: pixels of which at least half is covered.

        A mask that covers half of no pixel keeps the pixels that it covers most, so that small findings do not
        disappear.
        """
        coverage = self.to_square((np.asarray(mask) != 0).astype(np.float32))
        highest = float(coverage.max())
        return coverage >= min(0.5, highest) if highest > 0 else np.zeros(coverage.shape, bool)

    def box_to_square(self, box: ArrayLike) -> Shaped[np.ndarray, " 4"]:
        """The box (x, y, width, height) from original to square pixels, as integers with the published rounding.

        All four numbers are scaled by one factor, the corner is shifted by the padding, and each number is floored.
        """
        scaled = np.asarray(box, np.float64) * self.scale
        return np.floor(scaled + np.array([self.left, self.top, 0, 0])).astype(np.int64)

    def box_pixels(self, box: ArrayLike, thinnest: int = 1) -> tuple[slice, slice]:
        """The rows and columns of the square that a box covers, at least `thinnest` of each."""
        x, y, width, height = self.box_to_square(box).tolist()
        bottom, right = y + max(height, thinnest), x + max(width, thinnest)
        return slice(max(y, 0), max(bottom, 0)), slice(max(x, 0), max(right, 0))

    def points_to_square(self, points: ArrayLike) -> Float64[np.ndarray, "*points 2"]:
        """Points [..., 2] as (x, y), from original to square coordinates."""
        factors, offsets = self._affine
        return np.asarray(points, np.float64) * factors + offsets

    def points_to_original(self, points: ArrayLike) -> Float64[np.ndarray, "*points 2"]:
        """The inverse of `points_to_square`. Points in the padding are mapped to points outside the image."""
        factors, offsets = self._affine
        return (np.asarray(points, np.float64) - offsets) / factors

    def map_to_original(self, heatmap: Shaped[np.ndarray, "rows columns"]) -> Float32[np.ndarray, "H W"]:
        """The heat map [side, side] without padding, as [height, width] float32 (bilinear, half-pixel centres)."""
        part = np.ascontiguousarray(self.inner(np.asarray(heatmap)), np.float32)
        return np.asarray(cv2.resize(part, (self.width, self.height), interpolation=cv2.INTER_LINEAR), np.float32)

    def map_across(self, heatmap: Shaped[np.ndarray, "rows columns"]) -> Float32[np.ndarray, "h W"]:
        """The first half of `map_to_original`: rows of the square without padding, columns of the image."""
        part = np.ascontiguousarray(self.inner(np.asarray(heatmap)), np.float32)
        size = (self.width, part.shape[0])
        return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR), np.float32).reshape(size[::-1])

    def map_down(self, columns: Float32[np.ndarray, "h K"]) -> Float32[np.ndarray, "H K"]:
        """The second half, of some columns of `map_across`: as `map_to_original` has them, bit for bit."""
        count = columns.shape[1]
        if count == 1 < self.width:  # OpenCV computes an image of one column in another way
            columns = np.repeat(columns, 2, axis=1)
        size = (columns.shape[1], self.height)
        part = np.ascontiguousarray(columns)
        return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR), np.float32)[:, :count]

    @property
    def _affine(self) -> tuple[Float64[np.ndarray, " 2"], Float64[np.ndarray, " 2"]]:
        factors = np.array([self.inner_width / self.width, self.inner_height / self.height])
        return factors, np.array([self.left, self.top], np.float64)


def crop_to_square(image: UInt8[np.ndarray, "H W"], side: int = IMAGE_SIZE) -> UInt8[np.ndarray, "{side} {side}"]:
    """The middle of the image [height, width] as a square [side, side]: the short side is scaled to `side`.

    The published release frames images in this way for classification (for localisation it pads them, see `Geometry`).
    Interpolation is by area to shrink and bilinear to enlarge.
    """
    height, width = image.shape
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


def _read_bytes(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise ImageError(f"{path.name}: no such file in {path.parent}") from None
    except OSError as error:
        raise ImageError(f"{path.name}: cannot be read ({error.strerror})") from None


def _decode_picture(data: bytes, name: str, accepted: Accepted = ANY_IMAGE) -> Image.Image:
    """The first frame of a picture, decoded completely, with its EXIF orientation applied."""
    if not data:
        raise ImageError(f"{name}: the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=accepted.formats) as picture:
            if picture.width * picture.height > accepted.pixels:
                raise Image.DecompressionBombError
            if picture.format == "JPEG" and data.count(_SCAN) > MOST_SCANS:
                raise ImageError(f"{name}: more than {MOST_SCANS} scans, each of which takes time")
            picture.load()  # decodes everything, so that a truncated file fails here and not during training
            _check_png(picture, data, name)
            ImageOps.exif_transpose(picture, in_place=True)
            return picture
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {accepted.pixels:,} pixels is too large") from None
    except MemoryError:
        raise ImageError(f"{name}: decoding takes more memory than there is") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image in a known format") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise ImageError(f"{name}: damaged or truncated ({type(error).__name__}: {error})") from None


def _check_png(picture: Image.Image, data: bytes, name: str) -> None:
    """Raises ImageError for a PNG that is cut, without its palette, or with fewer rows than it states.

    The last row of such a file is black, unless it has passes.
    """
    if picture.format != "PNG":
        return
    if is_cut_png(data):
        raise ImageError(f"{name}: truncated: a part of it claims more bytes than there are")
    if lacks_palette(data):
        raise ImageError(f"{name}: damaged: its palette is missing")
    if (is_interlaced_png(data) or not np.asarray(picture)[-1].any()) and is_short_png(data):
        raise ImageError(f"{name}: truncated: it has fewer rows than it states")


def grey(picture: Image.Image, name: str) -> UInt8[np.ndarray, "H W"]:
    """A decoded picture of any mode as [height, width] uint8, with the rules of `read_image`."""
    if picture.mode == "L":
        return np.asarray(picture)
    if picture.mode in ("LA", "La"):
        return np.asarray(picture.getchannel("L"))
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8) * 255
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return eight_bits(np.asarray(picture), name)
    return np.asarray(picture.convert("RGB").convert("L"))


def _decode_by_opencv(data: bytes, name: str, accepted: Accepted) -> UInt8[np.ndarray, "H W"]:
    _decode_picture(data, name, accepted)  # refuses what OpenCV reads in part without a word
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise ImageError(f"{name}: OpenCV, which reads grey values as the release does, cannot read this file")
    return np.asarray(pixels, np.uint8)


def eight_bits(pixels: Real[np.ndarray, "*shape"], name: str) -> UInt8[np.ndarray, "*shape"]:
    """The pixels scaled linearly from their minimum and maximum to 0..255. A constant image becomes black.

    Rows are scaled one by one, because the whole image in float64 would take eight times its bytes. Raises ImageError
    for NaN and infinity: they would squeeze the range of the other pixels.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{name}: pixels that are no finite numbers")
    scaled = np.zeros(pixels.shape, np.uint8)
    for row, target in zip(pixels, scaled, strict=True) if high > low else ():
        target[...] = np.rint((row.astype(np.float64) - low) * (255.0 / (high - low)))
    return scaled


def _decode_dicom(data: bytes, name: str, accepted: Accepted) -> UInt8[np.ndarray, "H W"]:
    if unpacks_beyond(data, accepted.unpacked):
        raise ImageError(f"{name}: more than {accepted.unpacked:,} bytes when unpacked")
    try:
        pixels = dicom.decode(data, accepted.pixels)
    except dicom.Refused as error:
        raise ImageError(f"{name}: {error}") from None
    except MemoryError:
        raise ImageError(f"{name}: decoding takes more memory than there is") from None
    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(eight_bits(pixels, name)).convert("L"))
