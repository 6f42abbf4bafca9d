"""A real S3 server behind a fault proxy: every operation ends well, byte for byte, or says why it fails."""

from __future__ import annotations

import io
import os
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray import s3 as s3_module
from poisoncam_ray import store
from poisoncam_ray.corpus import open_corpus
from poisoncam_ray.corpus.listing import list_sources
from poisoncam_ray.errors import UserError
from poisoncam_ray.folder import Folder
from tests.s3 import S3Server

pytestmark = pytest.mark.s3

LARGE = os.urandom(60_000_000)
SMALL = b"a small object"
# Longer than a client's first attempts take to fail, and far shorter than its patience.
AWAY_S = 15
FAULTS = ["503", "refuse", "reset", "cut", "black_hole", "lost_ack"]
WRITES = ["write", "upload", "upload_file", "create", "delete", "delete_folder"]
READS = ["read", "download", "list", "look", "parquet"]


IMAGES = [os.urandom(20_000) for _ in range(64)]


def shard_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": IMAGES}), sink, row_group_size=16)
    return sink.getvalue()


class Operations:
    """Each asserts, past the proxy where it can, that it did what it says. They read what lies at `objects`
    and write to a folder of the test's own, `uri`."""

    def __init__(self, server: S3Server, name: str) -> None:
        self.server, self.objects = server, server.uri("objects")
        self.prefix, self.uri = f"faults/{name}", server.uri("faults", name)

    def stored(self, name: str) -> bytes:
        found = self.server.client().get_object(Bucket=self.server.bucket, Key=f"{self.prefix}/{name}")
        return found["Body"].read()

    def write(self) -> None:
        store.write_bytes(self.uri, "small", SMALL)
        assert self.stored("small") == SMALL

    def upload(self) -> None:
        store.write_bytes(self.uri, "large", LARGE)
        assert self.stored("large") == LARGE

    def upload_file(self) -> None:
        with store.whole_file(self.uri, "file") as path, open(path, "wb") as file:
            file.write(LARGE)
        assert self.stored("file") == LARGE

    def create(self) -> None:
        assert store.create_once(self.uri, "once", b"mine")
        assert not store.create_once(self.uri, "once", b"another's")
        assert self.stored("once") == b"mine"

    def delete(self) -> None:
        self.server.client().put_object(Bucket=self.server.bucket, Key=f"{self.prefix}/gone", Body=SMALL)
        store.delete(self.uri, "gone")
        assert not self.server.objects(f"{self.prefix}/gone")

    def delete_folder(self) -> None:
        for n in range(5):
            key = f"{self.prefix}/folder/{n}"
            self.server.client().put_object(Bucket=self.server.bucket, Key=key, Body=SMALL)
        Folder(self.uri).delete("folder")
        assert not self.server.objects(f"{self.prefix}/folder")

    def read(self) -> None:
        assert store.read_bytes(self.objects, "small") == SMALL

    def download(self) -> None:
        assert store.read_bytes(self.objects, "large") == LARGE

    def list(self) -> None:
        assert Folder(self.objects).names() == ["corpus", "large", "small"]
        assert [source.path for source in list_sources(f"{self.objects}/corpus")] == ["a.parquet"]

    def look(self) -> None:
        assert store.exists(self.objects, "small") and not store.exists(self.objects, "smaller")

    def parquet(self) -> None:
        corpus = open_corpus(f"{self.objects}/corpus", rows_per_slice=16)
        assert [row.data for slice_ in corpus.slices() for row in corpus.read(slice_)] == IMAGES


@pytest.fixture(scope="module")
def objects(s3) -> S3Server:
    for key, data in {"small": SMALL, "large": LARGE, "corpus/a.parquet": shard_bytes()}.items():
        s3.client().put_object(Bucket=s3.bucket, Key=f"objects/{key}", Body=data)
    return s3


@pytest.fixture
def operations(objects, use_s3, chaos, tmp_path, monkeypatch) -> Operations:
    """Through the proxy, with short time-outs."""
    monkeypatch.setattr(s3_module, "CONNECT_S", 1)
    monkeypatch.setattr(s3_module, "READ_S", 2)
    use_s3(objects.environment(chaos.endpoint))
    return Operations(objects, tmp_path.name)


@pytest.mark.parametrize(
    ("fault", "name"),
    [(f, name) for f in FAULTS for name in [*WRITES, *READS] if f != "lost_ack" or name in WRITES],
)
def test_a_few_faults_change_nothing(fault, name, operations, chaos):
    times = 1 if fault == "black_hole" else 3
    chaos.inject(fault, times)
    getattr(operations, name)()
    injected, left = chaos.injected[fault], chaos.left
    chaos.calm()
    # Nothing to cut or reset in an answer without a body.
    assert injected + left == times and (injected or fault in ("cut", "reset"))


def test_an_upload_whose_last_answer_is_lost_is_there(operations, chaos):
    # The first POST begins the upload, the second one ends it.
    chaos.inject("lost_ack", 1, {"POST"}, after=1)
    operations.upload()
    assert chaos.injected["lost_ack"] == 1


def test_of_several_creators_that_lose_answers_one_wins(operations, chaos):
    for attempt in range(3):
        chaos.inject("lost_ack", 4, {"PUT"})
        names = [f"creator {me}".encode() for me in range(4)]
        won = store.in_parallel(
            lambda name, file=f"race-{attempt}": store.create_once(operations.uri, file, name), names
        )
        assert won.count(True) == 1
        assert operations.stored(f"race-{attempt}") == names[won.index(True)]
        assert not chaos.left


def test_a_server_killed_amid_reads_and_writes_comes_back(objects, use_s3, chaos, tmp_path):
    use_s3(objects.environment(chaos.endpoint))
    operations = Operations(objects, tmp_path.name)
    done: list[str] = []

    def start(name: str) -> threading.Thread:
        worker = threading.Thread(target=lambda: (getattr(operations, name)(), done.append(name)))
        worker.start()
        return worker

    chaos.inject("slow", 10**6)
    workers = [start(name) for name in ("download", "upload", "upload_file")]
    time.sleep(3)
    objects.kill()
    workers += [start(name) for name in ("parquet", "list", "create")]
    try:
        time.sleep(AWAY_S)
        assert not done
    finally:
        chaos.calm()
        objects.start()
    whole = {"large": len(LARGE), "file": len(LARGE), "once": 4}
    seen = objects.objects(f"{operations.prefix}/")
    assert seen.items() <= {f"{operations.prefix}/{name}": size for name, size in whole.items()}.items()
    for worker in workers:
        worker.join()
    assert sorted(done) == ["create", "download", "list", "parquet", "upload", "upload_file"]


def test_a_server_that_stays_away_is_named(s3, use_s3, monkeypatch):
    monkeypatch.setattr(s3_module, "PATIENCE_S", 1.0)
    use_s3(s3.environment("http://127.0.0.1:9"))
    for operation in (
        lambda: store.read_bytes(s3.uri("a"), "b"),
        lambda: store.write_bytes(s3.uri("a"), "b", SMALL),
        lambda: store.exists(s3.uri("a"), "b"),
        lambda: list_sources(s3.uri("a")),
    ):
        with pytest.raises(s3_module.StoreAwayError, match=r"http://127\.0\.0\.1:9 failed for \d s"):
            operation()


@pytest.mark.parametrize("wrong", ["secret", "key", "none", "bucket"])
def test_what_the_user_must_mend_is_one_sentence_at_once(s3, use_s3, monkeypatch, wrong, tmp_path):
    retries: list[str] = []
    monkeypatch.setattr(s3_module.metrics, "count", lambda name, n: retries.append(name))
    environment = s3.environment()
    uri = s3.uri("a")
    if wrong == "secret":
        environment["AWS_SECRET_ACCESS_KEY"] = "not-the-secret"
    elif wrong == "key":
        environment["AWS_ACCESS_KEY_ID"] = "not-the-key"
    elif wrong == "bucket":
        uri = "s3://nosuchbucket/a"
    use_s3(environment)
    if wrong == "none":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
    for operation in (
        lambda: Folder(uri).names(),
        lambda: store.read_bytes(uri, "b"),
        lambda: store.write_bytes(uri, "b", SMALL),
        lambda: store.create_once(uri, "b", SMALL),
        lambda: list_sources(uri),
    ):
        try:
            with pytest.raises(UserError) as caught:
                operation()
        except FileNotFoundError:
            # A question about one object is answered in the same way for a bucket that is not there.
            assert wrong == "bucket"
            continue
        said = str(caught.value)
        assert "\n" not in said and said.endswith(".") and uri[:12] in said
        for secret in (s3.secret, s3.key, "not-the-secret", "not-the-key"):
            assert secret not in said
    assert not retries
