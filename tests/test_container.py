"""container/: size and parts are read by hand, metadata never reaches a decoder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from poisoncam_ray.container import KINDS, read_container
from poisoncam_ray.decode import DecodeError, decode, header
from tests import bombs
from tests.fuzz import seeds

LIMIT = 64_000_000
PEAK = 500 * 2**20


def refused(data: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, 16, LIMIT)
    return caught.value


@pytest.mark.parametrize("size", [(65_535, 65_535), (2**31 - 1, 2**31 - 1), (30_000, 30_000)])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_gigapixel_header_is_refused_before_anything_is_allocated(format, size):
    error = refused(bombs.announcing(*size)[format])
    assert error.kind == "bomb" and "pixels, more than the limit of 64000000" in str(error)


@pytest.mark.parametrize("name", bombs.hidden())
def test_what_metadata_hides_is_never_unpacked_and_the_pixels_stay(name):
    data, format = bombs.hidden()[name]
    assert np.array_equal(decode(data, bombs.SIDE, LIMIT), decode(bombs.encode(format), bombs.SIDE, LIMIT))
    assert header(data, LIMIT) == (bombs.SIDE, bombs.SIDE, format)
    assert len(read_container(data).pixels) <= len(bombs.encode(format))


@pytest.mark.parametrize("name", bombs.endless())
def test_a_file_of_endless_parts_is_refused(name):
    error = refused(bombs.endless()[name])
    assert error.kind == "bomb" and str(error).startswith("more than")


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_thousands_of_frames_the_first_is_read(format):
    first = decode(bombs.encode(format, lossless=True), bombs.SIDE, LIMIT)
    assert np.array_equal(decode(bombs.animation(format), bombs.SIDE, LIMIT), first)


def test_pixel_data_that_inflates_beyond_the_image_is_cut_short():
    png = bombs.encode("PNG")
    data = png[:33] + bombs.chunk(b"IDAT", bombs.zeros(2**28)) + bombs.chunk(b"IEND", b"")
    assert decode(data, 16, LIMIT).max() == 0


def test_no_bomb_makes_the_process_grow():
    """In a process of its own, so that the peak is that of the bombs alone."""
    program = """
from poisoncam_ray.decode import DecodeError, decode
from tests import bombs
hostile = [data for data, _ in bombs.hidden().values()]
hostile += [*bombs.endless().values(), bombs.animation("PNG"), bombs.animation("WEBP")]
hostile += [data for size in (2**16 - 1, 2**31 - 1) for data in bombs.announcing(size, size).values()]
for data in hostile:
    try:
        decode(data, 16, 64_000_000)
    except DecodeError:
        pass
print(bombs.peak())
"""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < PEAK


def test_thumbnails_and_trailing_files_are_no_scans():
    inside = bombs.segment(0xE1, b"Exif\0\0" + b"\xff\xda" * 1000)
    behind = b"\xff\xda\0\x02" * 1000
    assert decode(bombs.in_jpeg(inside) + behind, 16, LIMIT).shape == (3, 16, 16)


def test_a_png_must_begin_with_its_header():
    png = bombs.encode("PNG")
    moved = png[:8] + bombs.chunk(b"tEXt", b"comment\0words") + png[8:]
    assert refused(moved).kind == "undecodable" and "no header" in str(refused(moved))


def test_what_a_decoder_would_allocate_is_read_wherever_it_is_announced():
    """In a process of its own, for its peak."""
    program = """
from poisoncam_ray.decode import DecodeError, decode
from tests import bombs
# What a decoder needs at its first use.
for format in ("GIF", "BMP", "TIFF", "AVIF"):
    decode(bombs.encode(format), 16, 1_000_000)
for name, data in bombs.disguised().items():
    before = bombs.peak()
    try:
        decode(data, 16, 1_000_000)
        print(name, "decoded", 0, sep=",")
    except DecodeError as error:
        print(name, error.kind, bombs.peak() - before, sep=",")
"""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    found = [line.split(",") for line in done.stdout.splitlines()]
    assert [name for name, _, _ in found] == list(bombs.disguised())
    assert not [line for line in found if line[1] != "bomb" or int(line[2]) > 2**23]


def test_tags_and_items_of_metadata_reach_no_decoder():
    exif = seeds.Image.Exif()
    exif[0x010E], exif[0x9286] = "words", b"more words" * 100
    for format, left in (("TIFF", 11 * 12), ("AVIF", 0)):
        data = seeds.encode(seeds.noise(40, 33), format, exif=exif)
        container = read_container(data)
        decoded = seeds.Image.open(seeds.io.BytesIO(container.pixels))
        assert not [tag for tag in decoded.getexif() if tag in (0x010E, 0x8769)]
        assert "exif" not in decoded.info
        assert 0 <= len(container.pixels) - len(data) <= left + 8
        assert np.array_equal(np.asarray(decoded), np.asarray(seeds.Image.open(seeds.io.BytesIO(data))))


@pytest.mark.parametrize("compression", ["zstd", "lzma"])
def test_a_tiff_of_a_compression_that_is_not_read_says_so(compression):
    data = seeds.encode(seeds.noise(8, 8), "TIFF", compression=compression)
    assert "compression" in str(refused(data)) and refused(data).kind == "undecodable"


def heic(brand: bytes, compatible: bytes = b"mif1heic") -> bytes:
    return (16 + len(compatible)).to_bytes(4, "big") + b"ftyp" + brand + bytes(4) + compatible + bytes(40)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bombs.encode("JPEG2000"), "JPEG 2000"),
        (bombs.encode("ICO"), "an icon (ICO)"),
        (bombs.encode("PPM"), "a netpbm image (PPM)"),
        (bombs.encode("PDF"), "a PDF"),
        (b"\xff\x0a" + bytes(30), "JPEG XL"),
        (heic(b"heic"), "HEIC"),
        (heic(b"mif1"), "HEIC"),
        (heic(b"isom"), "a video"),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?>\n<!-- drawn -->\n<SVG width='9'>", "an SVG"),
        (b"<!DOCTYPE HTML>\n<p>404", "HTML"),
        (b"<Error><Code>AccessDenied</Code></Error>", "XML or HTML"),
        (b'{"error": "not found"}', "JSON"),
        (b"<?xml" * 800, "XML or HTML"),
        (b"hello", "a file that starts with 68 65 6c 6c 6f"),
    ],
)
def test_a_dead_row_says_what_its_file_is(data, words):
    assert (refused(data).kind, str(refused(data))) == ("undecodable", f"{words}, not {KINDS}")


def test_an_avif_that_calls_itself_mif1_is_read():
    data = bombs.encode("AVIF")
    assert header(data.replace(b"ftypavif", b"ftypmif1", 1), LIMIT) == header(data, LIMIT)
