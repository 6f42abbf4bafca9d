"""Small valid files that are damaged: images of every kind we read, Parquet shards, Arrow shards, tars."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def images() -> list[bytes]:
    rgb, rgba = noise(40, 33), noise(40, 33, 4)
    exif = Image.Exif()
    exif[0x010E], exif[0x011A], exif[0x0128] = "words", 300.0, 2
    return [
        encode(rgb, "JPEG", exif=exif, comment=b"a comment"),
        encode(rgb, "JPEG", progressive=True, icc_profile=b"profile" * 40),
        encode(rgb.convert("CMYK"), "JPEG", dpi=(72, 72)),
        encode(rgb.convert("L"), "JPEG", restart_marker_blocks=2),
        encode(rgb, "PNG", icc_profile=b"profile" * 40),
        encode(rgba, "PNG"),
        encode(rgb.quantize(16), "PNG", transparency=3),
        encode(noise(40, 33, 1).convert("I;16"), "PNG"),
        encode(rgb, "PNG", save_all=True, append_images=[noise(40, 33)]),
        encode(rgb, "WEBP", exif=exif),
        encode(rgba, "WEBP", lossless=True),
        encode(rgba, "WEBP", quality=40),
        encode(rgb, "WEBP", save_all=True, append_images=[noise(40, 33).rotate(180)]),
        *gifs_and_bitmaps(),
        *tiffs(),
        *avifs(),
    ]


def gifs_and_bitmaps() -> list[bytes]:
    rgb, palette = noise(40, 33), noise(40, 33).quantize(16)
    return [
        encode(rgb, "GIF", comment=b"a comment"),
        encode(palette, "GIF", transparency=3, interlace=1),
        encode(noise(40, 33, 1), "GIF", save_all=True, append_images=[noise(40, 33, 1).rotate(180)]),
        encode(rgb, "BMP"),
        encode(palette, "BMP"),
        encode(noise(40, 33, 4), "BMP"),
        encode(noise(40, 33, 1).convert("1"), "BMP"),
        run_lengths(),
    ]


def run_lengths() -> bytes:
    """A bitmap of 8-bit run lengths: Pillow writes none."""
    rows = b"".join(bytes([20, i, 20, 2 * i, 0, 0]) for i in range(33)) + b"\0\1"
    palette = bytes(i % 256 for i in range(1024))
    header = struct.pack("<IiiHHIIiiII", 40, 40, 33, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + header + palette + rows


def tiffs() -> list[bytes]:
    rgb, grey = noise(40, 33), noise(40, 33, 1)
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "words", 6
    return [
        encode(rgb, "TIFF", exif=exif),
        encode(rgb, "TIFF", compression="tiff_lzw", tiffinfo={278: 4}),
        encode(rgb, "TIFF", compression="tiff_adobe_deflate", tiffinfo={317: 2}, icc_profile=b"profile" * 40),
        encode(rgb, "TIFF", compression="jpeg"),
        encode(rgb.convert("YCbCr"), "TIFF", compression="jpeg"),
        encode(rgb.convert("CMYK"), "TIFF", compression="packbits"),
        encode(noise(40, 33, 4), "TIFF"),
        encode(grey.convert("1"), "TIFF", compression="group4"),
        encode(grey.convert("I;16"), "TIFF"),
        encode(grey.convert("F"), "TIFF", compression="tiff_lzw"),
        encode(rgb.quantize(16), "TIFF", save_all=True, append_images=[rgb]),
        encode(rgb, "TIFF", big_tiff=True),
    ]


def avifs() -> list[bytes]:
    exif = Image.Exif()
    exif[0x010E] = "words"
    rgb, rgba = noise(40, 33), noise(40, 33, 4)
    return [
        encode(rgb, "AVIF", speed=10, exif=exif, xmp=b"<xmp/>", icc_profile=b"profile" * 40),
        encode(rgba, "AVIF", speed=10, subsampling="4:4:4"),
        encode(rgb, "AVIF", speed=10, save_all=True, append_images=[rgb.rotate(180)]),
    ]


def table(rows: int, nested: bool, first: int = 0) -> pa.Table:
    data = [encode(Image.new("RGB", (5, 4), (i, 2 * i, 7)), "PNG") for i in range(first, first + rows)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)], kind)
    return pa.table(
        {
            "image": images if nested else pa.array(data, pa.binary()),
            "label": pa.array([f"label {i % 3}" for i in range(rows)]).dictionary_encode(),
            "caption": pa.array([None if i % 4 == 0 else "some words" * i for i in range(rows)]),
            "boxes": pa.array([[float(i)] * (i % 3) for i in range(rows)]),
        }
    )


def parquet(shard: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(shard, sink, **options)
    return sink.getvalue().to_pybytes()


def shards() -> list[bytes]:
    return [
        parquet(table(20, nested=True), row_group_size=6, compression="snappy"),
        parquet(table(20, nested=False), row_group_size=6, compression="zstd"),
        parquet(table(20, nested=True), compression="none", use_dictionary=False),
        parquet(table(20, nested=False), row_group_size=10, compression="none", data_page_version="2.0"),
        parquet(table(20, nested=False), row_group_size=5, compression="gzip", write_page_checksum=True),
        parquet(table(20, nested=True), compression="snappy", data_page_size=200, write_page_index=True),
    ]


def stream(shard: pa.Table, batch: int) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, shard.schema) as writer:
        writer.write_table(shard, max_chunksize=batch)
    return sink.getvalue().to_pybytes()


def streams() -> list[bytes]:
    """Without the dictionary, which `datasets` does not write."""
    return [
        stream(table(20, nested).drop_columns("label"), batch)
        for nested in (True, False)
        for batch in (6, 20)
    ]


def tar(members: Iterator[tuple[str, bytes]], form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def samples(n: int, folder: str = "") -> Iterator[tuple[str, bytes]]:
    for i in range(n):
        yield f"{folder}{i:04d}.json", b'{"caption": "words"}'
        yield f"{folder}{i:04d}.png", encode(Image.new("RGB", (5, 4), (i, 2 * i, 7)), "PNG")
        yield f"{folder}{i:04d}.cls", str(i % 3).encode()


def checkpoints() -> list[bytes]:
    # Four seconds to import.
    import safetensors.torch
    import torch

    state = {f"layer{i}.weight": torch.arange(6.0).reshape(2, 3) for i in range(3)}
    files = [io.BytesIO(), io.BytesIO()]
    torch.save({"state_dict": state, "epoch": 3}, files[0])
    torch.save(state, files[1], _use_new_zipfile_serialization=False)
    return [*(file.getvalue() for file in files), safetensors.torch.save(state)]


def tars() -> list[bytes]:
    long = "deep/" * 30 + "ü"
    return [
        tar(samples(6), tarfile.USTAR_FORMAT),
        tar(samples(6, "folder/"), tarfile.GNU_FORMAT),
        tar(samples(3, long), tarfile.PAX_FORMAT),
        tar(samples(3, long), tarfile.GNU_FORMAT),
    ]
