"""The demo with everything it writes and reads on S3 ends as the demo on local disk does."""

from __future__ import annotations

import io
import json

import pyarrow.parquet as pq
import pytest

from poisoncam_ray import artifact
from poisoncam_ray.folder import MANIFEST
from tests.small import defend, scores

pytestmark = [pytest.mark.e2e, pytest.mark.s3]


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_the_demo_on_s3_ends_with_the_local_scores(local_demo, s3):
    folder, local = local_demo
    assert local.returncode == 0, local.said
    process = defend("--output", s3.uri("demo"), timeout=1700, environment=s3.environment())
    assert process.returncode == 0, process.said
    client, run = s3.client(), folder / "run"

    def read(key: str) -> bytes:
        return client.get_object(Bucket=s3.bucket, Key=key)["Body"].read()

    parts = [io.BytesIO(read(key)) for key in s3.objects(f"demo/run/{artifact.SCORES}/part-")]
    assert [row for part in parts for row in pq.read_table(part).to_pylist()] == scores(run)

    def both(name: str) -> tuple[dict, dict]:
        return json.loads(read(f"demo/run/{name}")), json.loads((run / name).read_bytes())

    there, here = both(f"{artifact.CLEAN}/{MANIFEST}")
    assert there["ledger"] == here["ledger"]
    there, here = both(f"{artifact.PAGE}/{artifact.METRICS}")
    assert there == here
