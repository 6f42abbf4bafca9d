"""Hostile corpora, checkpoints and run folders are refused in words; nothing they hold is run, and nothing is
written outside the output. The threat model is .github/SECURITY.md."""

import io
import json
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from poisoncam_ray import artifact
from poisoncam_ray.config import Config
from poisoncam_ray.container import KINDS
from poisoncam_ray.corpus import DEAD, KEPT, REMOVED, Slice, open_corpus
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import MANIFEST, Folder, Manifest, part_name
from poisoncam_ray.report.page import build_report
from poisoncam_ray.report.removed import removed_csv
from poisoncam_ray.stages.embed import load_encoder, read_features
from poisoncam_ray.stages.index import index_slice
from poisoncam_ray.stages.own_encoder import MAX_BYTES, read_checkpoint
from tests import bombs
from tests.fake_evidence import flag_images
from tests.fake_run import make_fake_run
from tests.here import defend_here

ROOT = Path(__file__).parents[1]


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def mark(tmp_path):
    """A file that must not appear."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def dead_rows(corpus_folder: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """Index the corpus; (error, message) by image id of the rows that died."""
    corpus = open_corpus(str(corpus_folder))
    out, dead = Folder(str(folder / "index")), Folder(str(folder / "dead"))
    for slice_ in corpus.slices():
        index_slice(slice_, corpus, Config(), out, dead)
    rows = [row for name in dead.parts() for row in dead.read_table(name).to_pylist()]
    return {row["image_id"]: (row["error"], row["message"]) for row in rows}


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


# ---- images


def test_polyglots_and_disguises_are_dead_rows_or_plain_images(tmp_path):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("run.js", "alert(1)")
    script = b"/*\xff\xd8\xff\xe0*/=1;alert(1)"
    files = {
        "jpeg-then-zip.jpg": bombs.encode("JPEG") + zipped.getvalue(),
        "zip-then-jpeg.jpg": zipped.getvalue() + bombs.encode("JPEG"),
        "gif-and-script.jpg": b"GIF89a" + script,
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "page.png": b"<!doctype html><script>alert(1)</script>",
        "executable.webp": b"\x7fELF" + bytes(60),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "photoshop.png": b"8BPS\0\1" + bytes(60),
    }
    (tmp_path / "corpus").mkdir()
    for name, data in files.items():
        (tmp_path / "corpus" / name).write_bytes(data)
    dead = dead_rows(tmp_path / "corpus", tmp_path)
    assert set(dead) == set(files) - {"jpeg-then-zip.jpg"}
    assert {error for error, _ in dead.values()} <= {"undecodable", "truncated"}
    named = {
        "drawing.png": "an SVG", "page.png": "HTML", "postscript.jpg": "PostScript",
        "photoshop.png": "a Photoshop file (PSD)", "zip-then-jpeg.jpg": "a packed file",
        "executable.webp": "a file that starts with 7f 45 4c 46 00 00 00 00",
    }  # fmt: skip
    assert {name: dead[name][1] for name in named} == {
        name: f"{words}, not {KINDS}" for name, words in named.items()
    }


def link_to_file(corpus: Path, outside: Path) -> None:
    (corpus / "b.png").symlink_to(outside / "secret.png")


def link_to_folder(corpus: Path, outside: Path) -> None:
    (corpus / "b").symlink_to(outside)


def link_through_a_link(corpus: Path, outside: Path) -> None:
    (corpus / "_hidden").symlink_to(outside)
    (corpus / "b.png").symlink_to("_hidden/secret.png")


def link_loop(corpus: Path, outside: Path) -> None:
    (corpus / "b.png").symlink_to("c.png")
    (corpus / "c.png").symlink_to("b.png")


def folder_loop(corpus: Path, outside: Path) -> None:
    (corpus / "b").symlink_to(corpus)


def link_to_nothing(corpus: Path, outside: Path) -> None:
    (corpus / "b.png").symlink_to("gone.png")


LINKS = [link_to_file, link_to_folder, link_through_a_link, link_loop, folder_loop, link_to_nothing]


@pytest.mark.parametrize("plant", LINKS, ids=lambda plant: plant.__name__)
def test_links_out_of_an_image_folder_are_refused(tmp_path, plant):
    corpus, outside = tmp_path / "corpus", tmp_path / "outside"
    corpus.mkdir()
    outside.mkdir()
    (corpus / "a.png").write_bytes(bombs.encode("PNG"))
    (outside / "secret.png").write_bytes(bombs.encode("PNG"))
    plant(corpus, outside)
    with pytest.raises(UserError, match="symbolic link"):
        open_corpus(str(corpus))


# ---- shards


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    data = bombs.encode("PNG") if kind == tarfile.REGTYPE else b""
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


UNSAFE = {
    "climbing": [member("../../climbed.png")],
    "climbing inside": [member("a/../../climbed.png")],
    "absolute": [member("/climbed.png")],
    "symbolic link": [member("link.png", tarfile.SYMTYPE, "../../secret.png")],
    "hard link": [member("link.png", tarfile.LNKTYPE, "good.png")],
    "device": [member("device.png", tarfile.CHRTYPE)],
    "pipe": [member("pipe.png", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_tar_members_die_and_are_never_written(tmp_path, name):
    shard = tmp_path / "corpus" / "shard.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:
        for info, data in [member("good.png"), *UNSAFE[name], member("later.png")]:
            archive.addfile(info, io.BytesIO(data))
    before = listing(tmp_path)
    corpus = open_corpus(str(shard.parent))
    rows = [row for slice_ in corpus.slices() for row in corpus.read(slice_)]
    assert [row.error and row.error[0] for row in rows] == [None, "unsafe_member", None]
    kept, removed = tmp_path / "out" / "kept", tmp_path / "out" / "removed"
    assert corpus.split(corpus.slices(), [KEPT, DEAD, KEPT], str(kept), str(removed)) == (2, 0)
    assert listing(tmp_path) - before == {"out/kept/shard.tar"}
    with tarfile.open(kept / "shard.tar") as archive:
        assert archive.getnames() == ["good.png", "later.png"]


def test_a_parquet_shard_that_asks_to_be_unpickled_is_read_as_data(tmp_path, mark):
    planted = pickle.dumps(Touch(mark))
    images = pa.array([bombs.encode("PNG")] * 3, pa.binary())
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": planted}
    schema = pa.schema(
        [pa.field("image", pa.binary(), metadata=extension), pa.field("other", pa.string())],
        metadata={b"pandas": planted, b"huggingface": planted},
    )
    table = pa.Table.from_arrays([images, pa.array(["a", "b", "c"])], schema=schema)
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus" / "a.parquet")
    corpus = open_corpus(str(tmp_path / "corpus"))
    assert [row.data for slice_ in corpus.slices() for row in corpus.read(slice_)] == images.to_pylist()
    out = str(tmp_path / "kept")
    assert corpus.split(corpus.slices(), [KEPT, REMOVED, DEAD], out, str(tmp_path / "removed")) == (1, 1)


def test_a_footer_that_announces_more_rows_than_could_be_costs_nothing(tmp_path):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [bombs.encode("PNG")] * 3}), sink, compression="none")
    data = bytearray(sink.getvalue().to_pybytes())
    metadata = pq.read_metadata(pa.BufferReader(bytes(data)))
    assert metadata.num_rows == 3
    data = rows_announced(bytes(data), 2**50)
    assert pq.read_metadata(pa.BufferReader(data)).row_group(0).num_rows == 2**50
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.parquet").write_bytes(data)
    pq.write_table(pa.table({"image": [bombs.encode("PNG")] * 3}), tmp_path / "corpus" / "b.parquet")
    corpus = open_corpus(str(tmp_path / "corpus"))
    assert sum(s.stop - s.start for s in corpus.slices()) < 100


def rows_announced(data: bytes, rows: int) -> bytes:
    """The shard with another number of rows in its footer: Thrift's compact zigzag numbers."""
    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length : -8]
    # num_rows is field 3 of the file and of its row group: a header byte 0x16, then 3 as 0x06.
    number, value = bytearray(), 2 * rows
    while value >= 128:
        number.append(value & 127 | 128)
        value >>= 7
    number.append(value)
    footer = footer.replace(b"\x16\x06", b"\x16" + bytes(number))
    return body + footer + struct.pack("<I", len(footer)) + b"PAR1"


def test_a_row_group_that_unpacks_to_far_more_than_it_stores_is_dead(tmp_path):
    (tmp_path / "corpus").mkdir()
    bomb, good = (tmp_path / "corpus" / name for name in ("bomb.parquet", "good.parquet"))
    images = pa.array([bytes(2**26)] * 5, pa.binary())
    pq.write_table(pa.table({"image": images}), bomb, compression="zstd", use_dictionary=False)
    del images
    pq.write_table(pa.table({"image": [bombs.encode("PNG")] * 3}), good)
    assert bomb.stat().st_size < 100_000
    corpus = open_corpus(str(tmp_path / "corpus"))
    rows = [row for slice_ in corpus.slices() for row in corpus.read(slice_)]
    dead = [row for row in rows if row.error]
    assert len(rows) - len(dead) == 3 and dead
    assert all("unpack" in row.error[1] for row in dead)


# ---- checkpoints


def legacy(state: object, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    "save", [torch.save, legacy, lambda state, path: path.write_bytes(pickle.dumps(state))]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, mark, save, suffix):
    path = tmp_path / f"model{suffix}"
    save({"state_dict": {"conv1.weight": torch.zeros(2)}, "extra": Touch(mark)}, path)
    with pytest.raises(UserError, match=r"holds Python objects|is no checkpoint"):
        read_checkpoint(str(path))


def test_a_checkpoint_that_unpacks_to_more_than_itself_is_refused(tmp_path):
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"w": torch.zeros(4_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert list(read_checkpoint(str(plain))) == ["w"]
    with pytest.raises(UserError, match="would unpack from"):
        read_checkpoint(str(packed))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_too_large_is_refused_before_it_is_read(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    with open(path, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match="more than the limit"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [2**63, 2**63 + 8]}},
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}},
        {"w": {"dtype": "PY", "shape": [1], "data_offsets": [0, 4]}},
        {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {f"w{i}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for i in range(1000)},
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header):
    text, path = json.dumps(header).encode(), tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(UserError, match="is no checkpoint"):
        read_checkpoint(str(path))
    path.write_bytes(struct.pack("<Q", 2**62) + text)
    with pytest.raises(UserError, match="is no checkpoint"):
        read_checkpoint(str(path))


def test_tensors_without_bytes_are_no_weights(tmp_path):
    claims = {
        "meta": torch.empty(2**40, device="meta"),
        "sparse": torch.sparse_coo_tensor(size=(2**30, 2**10), check_invariants=True),
        "name": {3: torch.zeros(1)},
    }
    for name, value in claims.items():
        path = tmp_path / f"{name}.pth"
        torch.save(value if isinstance(value, dict) else {"w": value}, path)
        with pytest.raises(UserError, match=r"holds no state dict|holds Python objects"):
            read_checkpoint(str(path))


# ---- the run folder


def test_pickles_planted_in_the_run_folder_are_never_unpickled(tmp_path, mark):
    planted = pickle.dumps(Touch(mark))
    torch.save({"w": Touch(mark)}, buffer := io.BytesIO())
    reads = {
        f"{artifact.ENCODER}/{artifact.WEIGHTS}": lambda run: load_encoder(run / artifact.ENCODER),
        f"{artifact.ENCODER}/{artifact.ENCODER_CONFIG}": lambda run: load_encoder(run / artifact.ENCODER),
        f"{artifact.FEATURES}/{part_name(0)}": lambda run: read_features(
            run / artifact.FEATURES, part_name(0)
        ),
        f"{artifact.CLEAN}/{MANIFEST}": lambda run: Manifest.read(run / artifact.CLEAN),
        f"{artifact.SCORES}/{part_name(0)}": lambda run: build_report(run.uri),
        f"{artifact.VERDICT}/{artifact.TRIGGERS}": lambda run: (run / artifact.VERDICT).read_table(
            artifact.TRIGGERS
        ),
        f"{artifact.VERDICT}/{artifact.VERDICT_FILE}": lambda run: build_report(run.uri),
        f"{artifact.CLASSIFIER}/{artifact.ROLES}": lambda run: build_report(run.uri),
        f"{artifact.CLASSIFIER}/{artifact.WHOLE_TRIGGERS}": lambda run: build_report(run.uri),
        f"{artifact.CLEAN}/{artifact.unit_reasons(0)}": removed_csv,
        f"{artifact.INDEX}/{artifact.SLICES}": lambda run: build_report(run.uri),
        artifact.RUN: lambda run: build_report(run.uri),
    }
    fake = make_fake_run(tmp_path)
    run = Folder(fake.run)
    flag_images(run)
    for name, read in reads.items():
        whole = run.read_bytes(name)
        read(run)
        for payload in (planted, buffer.getvalue()):
            run.write_bytes(name, payload)
            with pytest.raises(Exception) as caught:
                read(run)
            assert not isinstance(caught.value, pickle.UnpicklingError)
        run.write_bytes(name, whole)


@pytest.mark.parametrize("kind", ["parquet", "tar", "png"])
@pytest.mark.parametrize("climb", ["../victim", "a/../../victim"])
def test_a_run_folder_whose_slices_climb_reads_and_writes_nothing_outside(tmp_path, kind, climb):
    corpus_folder = tmp_path / "deep" / "corpus"
    (corpus_folder / "a").mkdir(parents=True)
    name = f"{climb}.{kind}"
    for path in (corpus_folder / f"good.{kind}", corpus_folder / name):
        if kind == "parquet":
            pq.write_table(pa.table({"image": [bombs.encode("PNG")]}), path)
        elif kind == "tar":
            with tarfile.open(path, "w") as archive:
                info, data = member("x.png")
                archive.addfile(info, io.BytesIO(data))
        else:
            path.write_bytes(bombs.encode("PNG"))
    before = listing(tmp_path)
    corpus = open_corpus(str(corpus_folder))
    good = corpus.slices()[0]
    fields = vars(good) | ({"files": (name,)} if kind == "png" else {"source": name, "version": None})
    hostile = Slice(**fields)
    with pytest.raises((UserError, ValueError), match="leaves"):
        list(corpus.read(hostile))
    with pytest.raises((UserError, ValueError), match="leaves"):
        corpus.split([hostile], [KEPT], str(tmp_path / "deep/out/kept"), str(tmp_path / "deep/out/removed"))
    with pytest.raises((UserError, ValueError), match="leaves"):
        corpus.fetch([name if kind == "png" else f"{name}#0"])
    assert listing(tmp_path) == before


# ---- what people look at


def test_control_codes_in_names_do_not_reach_the_terminal(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "\x1b]0;owned\x07\x1b[2J\x1b[31m\u202e\r.doc").write_bytes(b"x")
    code, said = defend_here("--input", str(corpus), "--output", str(tmp_path / "run"))
    assert code == 2 and ".doc" in said
    assert not [c for c in said if c != "\n" and not c.isprintable()], repr(said)


def test_names_that_are_markup_are_shown_as_text(tmp_path):
    evil = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
    fake = make_fake_run(tmp_path)
    run = Folder(fake.run)
    for name in (run / artifact.SCORES).parts():
        table = (run / artifact.SCORES).read_table(name)
        ids = pa.array([f"{evil}{i}" for i in table["image_id"].to_pylist()])
        (run / artifact.SCORES).write_table(name, table.set_column(0, "image_id", ids))
    page = build_report(fake.run)
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;" in page and "default-src 'none'" in page


# ---- the document


def test_every_test_that_the_threat_model_names_exists():
    named = set(re.findall(r"`([\w/]+\.py)`", (ROOT / ".github" / "SECURITY.md").read_text()))
    tests = {name for name in named if not name.startswith("jobs/")}
    assert len(tests) > 8
    assert not [name for name in tests if not (ROOT / "tests" / name).is_file()]
    assert not [name for name in named - tests if not (ROOT / name).is_file()]
