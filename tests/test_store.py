"""The door to storage: whole or absent, created once, told at once or waited for."""

from __future__ import annotations

import errno
import threading
import uuid
from pathlib import Path

import pytest
from botocore import exceptions as boto

from poisoncam_ray import s3, store
from poisoncam_ray.errors import UserError


@pytest.fixture(params=["local", "file", "memory"])
def place(request, tmp_path) -> str:
    return {
        "local": str(tmp_path / "place"),
        "file": (tmp_path / "place").as_uri(),
        "memory": f"memory://{uuid.uuid4().hex}",
    }[request.param]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_what_is_written_is_read_until_it_is_deleted(place):
    assert not store.exists(place) and not store.exists(place, "a/b")
    store.write_bytes(place, "a/b", b"one")
    store.write_bytes(place, "a/b", b"two")
    assert store.read_bytes(place, "a/b") == b"two"
    assert store.exists(place, "a/b") and store.exists(place, "a") and store.exists(place)
    store.delete(place, "a/b")
    store.delete(place, "a/b")
    assert not store.exists(place, "a/b")
    with pytest.raises(FileNotFoundError):
        store.read_bytes(place, "a/b")


def test_a_file_appears_when_its_block_ends_well(place):
    with store.whole_file(place, "a") as path:
        Path(path).write_bytes(b"half")
        assert not store.exists(place, "a")
        Path(path).write_bytes(b"whole")
    assert store.read_bytes(place, "a") == b"whole" and not Path(path).exists()


def test_a_block_that_fails_changes_nothing(place):
    store.write_bytes(place, "a", b"old")
    for name in ("a", "b"):
        with pytest.raises(RuntimeError, match="stop"), store.whole_file(place, name) as path:
            Path(path).write_bytes(b"half")
            raise RuntimeError("stop")
        assert not Path(path).exists()
    assert store.read_bytes(place, "a") == b"old" and not store.exists(place, "b")


def test_a_file_is_created_once(place):
    assert store.create_once(place, "a/b", b"first")
    assert not store.create_once(place, "a/b", b"second")
    assert store.read_bytes(place, "a/b") == b"first"


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_of_many_creators_one_wins(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr("os.link", refuse)
    for attempt in range(20):
        start, winners = threading.Barrier(8), []

        def create(me: int, start=start, winners=winners, name=f"{attempt}") -> None:
            start.wait()
            if store.create_once(str(tmp_path), name, f"{me}".encode() * 1000):
                winners.append(me)

        creators = [threading.Thread(target=create, args=(me,)) for me in range(8)]
        for creator in creators:
            creator.start()
        for creator in creators:
            creator.join()
        assert len(winners) == 1
        assert store.read_bytes(str(tmp_path), f"{attempt}") == f"{winners[0]}".encode() * 1000
    assert files(tmp_path) == {f"{attempt}" for attempt in range(20)}


def test_a_disk_error_is_not_taken_for_a_taken_name(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("os.link", full)
    with pytest.raises(OSError, match="disk full"):
        store.create_once(str(tmp_path), "a", b"x")
    assert not files(tmp_path)


def test_a_place_that_cannot_be_is_told():
    with pytest.raises(UserError, match="nosuch://bucket cannot be used"):
        store.connect("nosuch://bucket")


def refused(status: int, code: str = "") -> boto.ClientError:
    answer = {"Error": {"Code": code or str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    "error",
    [
        refused(500), refused(502), refused(503, "SlowDown"), refused(504), refused(429),
        refused(400, "RequestTimeout"), refused(409, "ConditionalRequestConflict"),
        boto.EndpointConnectionError(endpoint_url="http://x", error="refused"),
        boto.ReadTimeoutError(endpoint_url="http://x"), boto.ConnectionClosedError(endpoint_url="http://x"),
        boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), ConnectionResetError(), TimeoutError(),
        boto.SSLError(endpoint_url="http://x", error="connection reset by peer"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_may_pass_is_tried_again(error):
    assert s3.is_passing(error)


@pytest.mark.parametrize(
    "error",
    [
        refused(400, "InvalidArgument"), refused(401), refused(403, "AccessDenied"),
        refused(404, "NoSuchKey"), refused(412, "PreconditionFailed"), refused(501, "NotImplemented"),
        boto.NoCredentialsError(), boto.SSLError(endpoint_url="http://x", error="certificate verify failed"),
        FileNotFoundError(), UserError("no"), ValueError(),
    ],
    ids=repr,
)  # fmt: skip
def test_what_will_not_pass_is_told_at_once(error):
    assert not s3.is_passing(error)


def test_pieces_of_an_upload_fit_the_number_that_s3_takes():
    for size in (0, s3.PIECE, s3.PIECE * s3.MOST_PIECES, s3.PIECE * s3.MOST_PIECES + 1, 5 * 2**40):
        assert -(-size // s3.chunk_size(size)) <= s3.MOST_PIECES
