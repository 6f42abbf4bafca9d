"""The harness itself: a file that crashes, hangs, loses rows or takes too much memory is named."""

import base64

import pytest

from tests.fuzz.harness import fuzz
from tests.fuzz.worker import damaged


@pytest.mark.parametrize(
    ("kind", "words"),
    [("crash", "SIGSEGV"), ("hang", "SIGPROF"), ("lose", "not accounted for"), ("grow", "the process held")],
)
def test_misbehaviour_is_told_with_its_file(tmp_path, kind, words):
    with pytest.raises(AssertionError, match=words) as caught:
        fuzz(kind, 1, tmp_path)
    data = base64.b64encode(damaged(kind, 0, [b"some bytes"])).decode()
    assert kind == "grow" or data in str(caught.value)


def test_damage_is_the_same_every_time():
    files = [damaged("tar", i, [bytes(3000)]) for i in range(200)]
    assert files == [damaged("tar", i, [bytes(3000)]) for i in range(200)]
    assert len(set(files)) > 100
