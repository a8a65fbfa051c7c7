"""Transfer syntaxes of DICOM files: those that are read, with which packages, and those that are refused by name.

Files that pydicom ships are read where it has one of a syntax. The others get the same compressed pixels under the name
of the syntax, or pixels that were compressed with imagecodecs 2026.3.6 (High-Throughput JPEG 2000).
"""

import base64
import importlib.util

import numpy as np
import pytest

from data_pipelines import dicom
from data_pipelines.images import ImageError, read_image

pydicom = pytest.importorskip("pydicom")
HAVE = importlib.util.find_spec("gdcm") is not None and importlib.util.find_spec("openjpeg") is not None
NEEDS_EXTRA = pytest.mark.skipif(not HAVE, reason='pip install "afloc-jax[dicom]" is not there')

# A ramp of 24 x 20 pixels of 16 bits, see `ramp`.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAUAAAAGAAAAAAAAAAAAAAAFAAAABgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI"
    "/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAXwAAf+TwAAmzfgFB3QAwAATQAATACb8Aod0AKj6Awd0AMAAE0AAEwAz/gDLdADZ7AAiNADAABUQ"
    "AAVsAAE4ECP+AMrwVQCAWmrU/gAhAC85f7gAQoT9ByG0AMAAFqQAAWrAABaYkkMCAOCQ4ID8BX/Nf6vcQPg8ewBDIAMgFg2AWLQBiMYwLdcnU2P1fAAKAIAA"
    "ABAAQEU94vF7xe/1cbsAwAAu4gABeiwAAvSQefMGzt22MAhC2+q82xYGQWhbnXfbwiAIAju/n7+vnz1/nrju/n7+vnz3/PXHd/P39YA9o4tHYAIYIUJBCENS"
    "YQhDQQhDUmEIQwEoQZOkCYAIGpImABJw/mACHYQgD3YRAD46Pe/f2WHffde66Pe/f2WHffde65/XL+uTdQJKFqeGxamhORWKU6HYpGRxKhSnQnMqFKdCsUnJ"
    "4lQoToVmlspklsrk/gPfet71er++v7l9v19/Xvq/vr+5fb9ff170R9J3SbAC/9k="
)


def ramp():
    y, x = np.mgrid[:24, :20]
    return ((x * 37 + y * 91) // 8 % 512 * 7).astype(np.uint16)


def shipped(name):
    return pydicom.data.get_testdata_file(name)


def as_bytes(pixels):
    low, high = float(pixels.min()), float(pixels.max())
    return np.rint((pixels - low) * (255 / (high - low))).astype(np.uint8)


PLAIN = {
    "1.2.840.10008.1.2": "MR_small_implicit.dcm",
    "1.2.840.10008.1.2.1": "MR_small.dcm",
    "1.2.840.10008.1.2.2": "MR_small_bigendian.dcm",
    "1.2.840.10008.1.2.1.99": "image_dfl.dcm",
    "1.2.840.10008.1.2.4.50": "SC_rgb_jpeg_dcmtk.dcm",
    "1.2.840.10008.1.2.4.90": "MR_small_jp2klossless.dcm",
    "1.2.840.10008.1.2.4.91": "JPEG2000.dcm",
    "1.2.840.10008.1.2.5": "MR_small_RLE.dcm",
}
WITH_EXTRA = {
    "1.2.840.10008.1.2.4.51": "JPGExtended.dcm",
    "1.2.840.10008.1.2.4.70": "SC_rgb_jpeg_gdcm.dcm",
    "1.2.840.10008.1.2.4.80": "MR_small_jpeg_ls_lossless.dcm",
    "1.2.840.10008.1.2.4.81": "JPEGLSNearLossless_16.dcm",
}


def renamed(path, source, syntax):
    """A file of pydicom under the name of another syntax, which its pixels have as well."""
    dataset = pydicom.dcmread(source)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    return path


def htj2k(path, syntax):
    dataset, pixels = pydicom.dcmread(shipped("MR_small.dcm")), ramp()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 16, 15
    dataset.PixelData = pydicom.encaps.encapsulate([HTJ2K])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    del dataset.WindowCenter, dataset.WindowWidth
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(("syntax", "name"), PLAIN.items())
def test_a_plain_install_reads(syntax, name):
    path = shipped(name)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    pixels = read_image(path)
    if name.startswith("MR_small"):  # the same image, compressed without loss
        np.testing.assert_array_equal(pixels, read_image(shipped("MR_small.dcm")))
    assert pixels.std() > 5


@NEEDS_EXTRA
@pytest.mark.parametrize(("syntax", "name"), WITH_EXTRA.items())
def test_the_extra_reads(syntax, name):
    path = shipped(name)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    pixels = read_image(path)
    if name == "MR_small_jpeg_ls_lossless.dcm":
        np.testing.assert_array_equal(pixels, read_image(shipped("MR_small.dcm")))
    if name == "SC_rgb_jpeg_gdcm.dcm":
        np.testing.assert_array_equal(pixels, read_image(shipped("SC_rgb_rle.dcm")))
    if name == "JPGExtended.dcm":  # 12 bits, 0 ... 264; values that pydicom's own tests know
        assert [pixels[420, 140], pixels[230, 120]] == [round(244 / 264 * 255), round(95 / 264 * 255)]
    assert pixels.std() > 5


@NEEDS_EXTRA
def test_the_extra_reads_syntaxes_of_which_pydicom_ships_no_file(tmp_path):
    any_predictor = renamed(tmp_path / "a.dcm", shipped("SC_rgb_jpeg_gdcm.dcm"), "1.2.840.10008.1.2.4.57")
    np.testing.assert_array_equal(read_image(any_predictor), read_image(shipped("SC_rgb_rle.dcm")))
    for number in (201, 202, 203):
        path = htj2k(tmp_path / f"{number}.dcm", f"1.2.840.10008.1.2.4.{number}")
        np.testing.assert_array_equal(read_image(path), as_bytes(ramp()))


@pytest.mark.skipif(HAVE, reason="the extra is installed")
def test_without_the_extra_it_is_named(tmp_path):
    files = [*map(shipped, WITH_EXTRA.values()), htj2k(tmp_path / "h.dcm", "1.2.840.10008.1.2.4.201")]
    for path in files:
        with pytest.raises(ImageError, match=r'needs more packages; run: pip install "afloc-jax\[dicom\]"'):
            read_image(path)


def test_every_still_syntax_that_pydicom_decodes_is_tested_here():
    from pydicom.pixels import get_decoder

    decoded = []
    for syntax in pydicom.uid.AllTransferSyntaxes:
        try:
            get_decoder(syntax)
            decoded.append(str(syntax))
        except NotImplementedError:
            assert syntax.name.startswith((*dicom._VIDEO, "JPIP", "JPEG 2000 Part 2")), syntax.name
    others = [f"1.2.840.10008.1.2.4.{number}" for number in (57, 201, 202, 203)]
    assert sorted(decoded) == sorted([*PLAIN, *WITH_EXTRA, *others])


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        ("1.2.840.10008.1.2.4.102", r"a video \(MPEG-4 AVC/H.264 High Profile / Level 4.1\)"),
        ("1.2.840.10008.1.2.4.100.1", r"a video \(Fragmentable MPEG2"),
        ("1.2.840.10008.1.2.4.107", r"a video \(HEVC"),
        ("1.2.840.10008.1.2.7.1", r"a video \(SMPTE"),
        ("1.2.840.10008.1.2.4.94", r"its pixels lie on a server \(JPIP Referenced\)"),
        ("1.2.840.10008.1.2.4.205", r"its pixels lie on a server \(JPIP HTJ2K Referenced Deflate\)"),
        ("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2 .* for which there is no decoder"),
        ("1.2.3.4", "an unknown transfer syntax, 1.2.3.4"),
    ],
)
def test_what_is_no_still_image_here_is_refused_by_name(tmp_path, syntax, words):
    with pytest.raises(ImageError, match=rf"^a\.dcm: .*{words}") as caught:
        read_image(renamed(tmp_path / "a.dcm", shipped("MR_small_RLE.dcm"), syntax))
    assert "\n" not in str(caught.value)


def test_colours_of_a_palette_are_looked_up():
    pixels = read_image(shipped("examples_palette.dcm"))
    stored = pydicom.dcmread(shipped("examples_palette.dcm")).pixel_array
    assert pixels.shape == stored.shape
    assert all(np.ptp(pixels[stored == index]) == 0 for index in (0, 50, 200))
    assert len(np.unique(pixels)) > 20 and not np.array_equal(pixels, stored)


def test_other_objects_are_no_images_and_the_header_says_what_pixels_measure(tmp_path):
    kinds = {"MR_small.dcm": "image", "reportsi.dcm": "other", "DICOMDIR": "other", "README.txt": "none"}
    assert {name: dicom.kind_of(shipped(name)) for name in kinds} == kinds
    with pytest.raises(ImageError, match=r"without an image \(Basic Text SR Storage\)"):
        read_image(shipped("reportsi.dcm"))
    header = dicom.read_header(shipped("MR_small.dcm"))
    assert header.spacing == (0.3125, 0.3125) and header.sop_instance_uid.startswith("1.3.6.1.4.1.5962.1.1.4")
    dataset = pydicom.dcmread(shipped("MR_small.dcm"))
    del dataset.PixelSpacing
    dataset.ImagerPixelSpacing = ["0.2", "0.1"]
    dataset.save_as(tmp_path / "a.dcm")
    assert dicom.read_header(tmp_path / "a.dcm").spacing == (0.2, 0.1)
    for wrong in ([1.0], [0.0, 1.0], None):
        dataset.ImagerPixelSpacing = wrong
        dataset.save_as(tmp_path / "b.dcm")
        assert dicom.read_header(tmp_path / "b.dcm").spacing is None
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:140])
    assert dicom.read_header(tmp_path / "cut.dcm") in (None, dicom.Header())
    assert dicom.read_header(tmp_path / "none.dcm") is None
