"""decode.py: every mode comes out as a training loader reads it and as a viewer shows it; bad bytes give a
DecodeError of the right kind."""

import io
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from poisoncam_ray.decode import DecodeError, decode, header, views
from tests.examples import examples

LIMIT = 10**7


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def flat(mode: str, colour, size: int = 8) -> Image.Image:
    return Image.new(mode, (size, size), colour)


def png(width: int, height: int, rows: bytes = b"", depth: int = 8, colour_type: int = 0) -> bytes:
    """A PNG written by hand, so the header can lie and 16-bit samples can be exact."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def shown(data: bytes) -> np.ndarray:
    """What a viewer shows."""
    first, second = views(data, 8, LIMIT)
    return first if second is None else second


def kind_of(data: bytes, max_pixels: int = LIMIT, **options) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, 8, max_pixels, **options)
    assert str(caught.value)
    return caught.value.kind


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (32, 48), (33, 50), (64, 64), (200, 64)])
def test_same_as_resizing_the_shorter_side_and_cropping_the_centre(size):
    image = smooth(*size)
    scale = 32 / min(size)
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR)
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32))).transpose(2, 0, 1)
    actual = decode(encode(image), 32, LIMIT)
    assert actual.shape == (3, 32, 32) and actual.dtype == np.uint8 and actual.flags["C_CONTIGUOUS"]
    # One resampling of the exact centre instead of two steps on whole pixels: half a pixel of the ramp.
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= 5


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_pixels_are_exact_when_no_resize_is_needed(format):
    image = noise(24, 24)
    pixels = decode(encode(image, format, lossless=True), 24, LIMIT)
    assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


def test_header_gives_stored_size_and_format():
    for format in ("PNG", "JPEG", "WEBP"):
        assert header(encode(noise(31, 17), format), LIMIT) == (31, 17, format)
    assert header(encode(noise(31, 17), "WEBP", lossless=True), LIMIT) == (31, 17, "WEBP")
    assert header(encode(noise(31, 17), "JPEG", progressive=True), LIMIT) == (31, 17, "JPEG")


@pytest.mark.parametrize(
    ("image", "format", "rgb"),
    [
        (flat("L", 100), "PNG", (100, 100, 100)),
        (flat("1", 1), "PNG", (255, 255, 255)),
        (flat("LA", (100, 255)), "PNG", (100, 100, 100)),
        (flat("LA", (100, 0)), "PNG", (255, 255, 255)),
        (flat("RGBA", (200, 0, 0, 0)), "PNG", (255, 255, 255)),
        (flat("RGBA", (255, 0, 0, 128)), "PNG", (255, 127, 127)),
        (flat("RGBA", (255, 0, 0, 255)), "WEBP", (255, 0, 0)),
        (flat("I;16", 65535), "PNG", (255, 255, 255)),
        (flat("I;16", 0x8080), "PNG", (128, 128, 128)),
        (flat("I;16", 300), "PNG", (1, 1, 1)),
        (flat("CMYK", (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (flat("L", 77), "JPEG", (77, 77, 77)),
    ],
)
def test_what_a_viewer_shows_of_each_mode(image, format, rgb):
    data = encode(image, format, **({"lossless": True} if format == "WEBP" else {}))
    pixels = shown(data)
    assert np.abs(pixels.astype(int) - np.array(rgb)[:, None, None]).max() <= (2 if format == "JPEG" else 1)


def test_palette_and_its_transparency():
    image = flat("RGB", (10, 200, 30)).quantize(4)
    assert decode(encode(image), 8, LIMIT)[:, 0, 0].tolist() == [10, 200, 30]
    transparent = encode(image, transparency=image.getpixel((0, 0)))
    assert decode(transparent, 8, LIMIT)[:, 0, 0].tolist() == [10, 200, 30]
    assert shown(transparent)[:, 0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (9, 9, 9)), ("L", 9), ("I;16", 4000)])
def test_one_transparent_colour_shows_white(mode, colour):
    data = encode(flat(mode, colour), transparency=colour)
    assert shown(data).min() == 255


def test_sixteen_bit_colour_keeps_its_scale():
    rows = b"".join(b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0) * 8 for _ in range(8))
    assert decode(png(8, 8, rows, depth=16, colour_type=2), 8, LIMIT)[:, 3, 3].tolist() == [255, 128, 0]


def transparent_palette(image: Image.Image, how: int | bytes) -> bytes:
    return encode(image.quantize(16), transparency=how)


def deep_rgb() -> bytes:
    samples = np.random.default_rng(2).integers(0, 65_536, (24, 72)).astype(">u2")
    return png(24, 24, b"".join(b"\0" + row.tobytes() for row in samples), depth=16, colour_type=2)


RGB, RGBA, GREY = noise(24, 24), noise(24, 24, 4), noise(24, 24, 1)
GREY16 = Image.fromarray(np.random.default_rng(1).integers(0, 700, (24, 24)).astype(np.uint16))
INTEGERS = Image.fromarray(np.random.default_rng(1).integers(-300, 700, (24, 24)).astype(np.int32))
LOADED = {
    "RGB": (encode(RGB), False),
    "grey": (encode(GREY), False),
    "bilevel": (encode(GREY.convert("1")), False),
    "palette": (encode(RGB.quantize(16)), False),
    "RGB of 16 bits": (deep_rgb(), False),
    "CMYK": (encode(RGB.convert("CMYK"), "JPEG"), False),
    "CMYK tiff": (encode(RGB.convert("CMYK"), "TIFF"), False),
    "YCbCr tiff": (encode(RGB.convert("YCbCr"), "TIFF"), False),
    "YCbCr JPEG tiff": (encode(RGB.convert("YCbCr"), "TIFF", compression="jpeg"), False),
    "LAB tiff": (encode(RGB.convert("RGB").convert("LAB"), "TIFF"), False),
    "turned tiff": (encode(RGB, "TIFF", tiffinfo={274: 6}), False),
    "webp": (encode(RGB, "WEBP"), False),
    "gif": (encode(RGB, "GIF"), False),
    "bmp": (encode(RGB, "BMP"), False),
    "avif": (encode(RGB, "AVIF"), False),
    "RGBA": (encode(RGBA), True),
    "RGBA webp": (encode(RGBA, "WEBP", lossless=True, exact=True), True),
    "RGBA tiff": (encode(RGBA, "TIFF", compression="tiff_lzw"), True),
    "RGBA avif": (encode(RGBA, "AVIF"), True),
    "opaque RGBA": (encode(RGB.convert("RGBA")), False),
    "LA": (encode(RGBA.convert("LA")), True),
    "palette, one transparent": (transparent_palette(RGB, 3), True),
    "palette, many transparent": (transparent_palette(RGB, bytes(range(0, 160, 10))), True),
    "gif, one transparent": (encode(RGB.quantize(16), "GIF", transparency=3), True),
    "RGB, one transparent": (encode(RGB, transparency=RGB.getpixel((3, 3))), True),
    "grey, one transparent": (encode(GREY, transparency=GREY.getpixel((3, 3))), True),
    "16 bits": (encode(GREY16), True),
    "16 bits tiff": (encode(GREY16, "TIFF"), True),
    "16 bits tiff, high byte first": (
        encode(Image.fromarray(np.asarray(GREY16).astype(">u2")), "TIFF"),
        True,
    ),
    "32 bits": (encode(INTEGERS, "TIFF"), True),
    "real": (encode(Image.fromarray(np.asarray(GREY, np.float32) / 255), "TIFF"), True),
    "real, 0 to 255": (encode(Image.fromarray(np.asarray(GREY, np.float32)), "TIFF"), False),
}


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_the_pixels_are_those_that_a_training_loader_reads(name):
    data, differs = LOADED[name]
    loaded = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode(data, 24, LIMIT), loaded)
    first, second = views(data, 24, LIMIT)
    assert np.array_equal(first, loaded)
    assert (second is not None) == differs
    assert second is None or not np.array_equal(first, second)


def test_real_numbers_are_scaled_by_their_range():
    for top, value, expected in ((1, 0.5, 128), (255, 100.0, 100), (65535, 257.0, 1), (10**6, 5e5, 128)):
        pixels = np.full((8, 8), value, np.float32)
        pixels[0, 0] = top
        assert shown(encode(Image.fromarray(pixels), "TIFF"))[:, 4, 4].tolist() == [expected] * 3
    broken = np.full((8, 8), np.nan, np.float32)
    assert shown(encode(Image.fromarray(broken), "TIFF")).max() == 0


@pytest.mark.parametrize("format", ["WEBP", "PNG", "GIF", "TIFF", "AVIF"])
def test_animation_gives_its_first_frame(format):
    frames = [flat("RGB", (255, 0, 0)), flat("RGB", (0, 255, 0))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert np.abs(decode(data, 8, LIMIT)[:, 4, 4].astype(int) - [255, 0, 0]).max() <= 3 * (format == "AVIF")


def test_exif_orientation_is_not_applied():
    image = smooth(20, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encode(image, "JPEG", exif=exif), 20, LIMIT)
    assert np.array_equal(turned, decode(encode(image, "JPEG"), 20, LIMIT))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_big_jpeg_looks_the_same_as_its_full_decode(mode):
    image = smooth(1203, 811).convert(mode)
    data = encode(image, "JPEG", quality=95)
    full = decode(encode(Image.open(io.BytesIO(data)).convert("RGB")), 32, LIMIT)
    assert np.abs(decode(data, 32, LIMIT).astype(int) - full).max() <= 4


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (1, 1)])
def test_slivers_stay_small(size):
    assert decode(encode(flat("RGB", (1, 2, 3)).resize(size)), 224, LIMIT)[:, 0, 0].tolist() == [1, 2, 3]


def test_kinds_of_broken_bytes():
    whole = encode(noise(40, 40), "JPEG")
    assert kind_of(b"") == "empty"
    assert kind_of(b"hello, this is text") == "undecodable"
    assert kind_of(encode(noise(8, 8), "JPEG2000")) == "undecodable"
    assert kind_of(whole, max_bytes=100) == "bomb"
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        data = encode(noise(64, 64), format)
        assert kind_of(data, max_pixels=64 * 64 - 1) == "bomb"
        assert decode(data, 8, 64 * 64).shape == (3, 8, 8)
        for length in (12, 40, len(data) // 2):
            assert kind_of(data[:length]) == "truncated", (format, length)


def test_headers_that_lie_cost_nothing():
    assert kind_of(png(0, 8)) == "zero_size"
    assert kind_of(png(2**31 - 1, 2**31 - 1)) == "bomb"
    assert kind_of(png(3000, 3000)) == "truncated"
    jpeg = bytearray(encode(noise(8, 8), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 0, 8)
    assert kind_of(bytes(jpeg)) == "zero_size"
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 65000, 65000)
    assert kind_of(bytes(jpeg)) == "bomb"
    body = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + b"\xff" * 6
    assert kind_of(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body) == "bomb"


def test_a_limit_above_pillows_own_is_honoured(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for format in ("PNG", "JPEG"):
        assert decode(encode(noise(64, 64), format), 8, LIMIT).shape == (3, 8, 8)
    # Pillow's own reader of WebP checks by itself, whatever the caller allows.
    assert kind_of(encode(noise(64, 64), "WEBP")) == "bomb"


def test_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(DecodeError("bomb", "too big")))
    assert (error.kind, str(error)) == ("bomb", "too big")


def test_pillow_still_refuses_truncated_files():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


SEEDS = [
    encode(noise(24, 20), "JPEG"),
    encode(noise(24, 20), "JPEG", progressive=True),
    encode(noise(24, 20), "PNG"),
    encode(noise(24, 20).quantize(16), "PNG", transparency=3),
    encode(noise(24, 20, 1).convert("I;16"), "PNG"),
    encode(noise(24, 20), "WEBP"),
    encode(noise(24, 20, 4), "WEBP", lossless=True),
    encode(noise(24, 20), "WEBP", save_all=True, append_images=[smooth(24, 20)]),
    encode(noise(24, 20), "PNG", save_all=True, append_images=[smooth(24, 20)]),
]


def decodes_or_says_why(data: bytes) -> None:
    try:
        assert decode(data, 16, 10**6).shape == (3, 16, 16)
        width, height, _ = header(data, 10**6)
        assert 0 < width * height <= 10**6
    except DecodeError as error:
        assert error.kind in ("empty", "undecodable", "truncated", "bomb", "zero_size")


@examples(400)
@given(st.sampled_from(SEEDS), st.data())
def test_mutated_files_decode_or_give_a_decode_error(seed, data):
    mutated = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 6))):
        # Headers are where a parser breaks, so half of the changes fall there.
        end = data.draw(st.sampled_from([64, len(mutated)]))
        position = data.draw(st.integers(0, max(min(end, len(mutated)) - 1, 0)))
        change = data.draw(st.sampled_from(["set", "delete", "insert", "cut"]))
        if change == "set" and mutated:
            mutated[position] = data.draw(st.integers(0, 255))
        elif change == "delete":
            del mutated[position : position + data.draw(st.integers(1, 8))]
        elif change == "insert":
            mutated[position:position] = data.draw(st.binary(min_size=1, max_size=8))
        elif change == "cut" and data.draw(st.booleans()):
            del mutated[position:]
    decodes_or_says_why(bytes(mutated))


@examples(100)
@given(st.sampled_from([b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\x89PNG\r\n\x1a\n", b"RIFF"]), st.binary())
def test_noise_after_a_magic_number(magic, tail):
    decodes_or_says_why(magic + tail)


def test_threads_give_the_same_pixels():
    expected = [decode(data, 16, LIMIT) for data in SEEDS]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda data: decode(data, 16, LIMIT), SEEDS * 20))
    assert all(np.array_equal(r, expected[i % len(SEEDS)]) for i, r in enumerate(results))
