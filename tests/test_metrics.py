"""What a Prometheus server would read from a real Ray while and after the stages count."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections import defaultdict

import pyarrow as pa
import pyarrow.parquet as pq
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from poisoncam_ray import metrics
from poisoncam_ray.progress import Progress
from poisoncam_ray.runner import Runner
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.index import Index
from tests.small import draw_small

Sample = tuple[str, frozenset[tuple[str, str]]]


def scrape() -> dict[Sample, float]:
    """(name, our own tags) → value, summed over the processes that reported."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    found: dict[Sample, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_poisoncam_"):
                tags = frozenset(item for item in sample.labels.items() if item[0] in ("stage", "kind"))
                found[sample.name, tags] += sample.value
    return found


def sample(name: str, **tags: str) -> Sample:
    return name, frozenset(tags.items())


def wait_for(expected: dict[Sample, float], before: dict[Sample, float], shown: Sample | None = None) -> None:
    """Until the counters have grown as expected, and the gauge `shown` was seen once. Processes report every
    ten seconds, and a gauge is gone soon after."""
    ends = time.monotonic() + 120
    while True:
        now = scrape()
        grown = {key: now.get(key, 0) - before.get(key, 0) for key in expected}
        shown = None if shown in now else shown
        if time.monotonic() > ends or (grown == expected and shown is None):
            assert grown == expected
            assert shown is None, f"{shown} was never there"
            return
        time.sleep(1)


def test_without_ray_nothing_is_counted_and_ray_is_not_imported():
    code = (
        "import sys; from poisoncam_ray import metrics; metrics.count('rows', 3, stage='Index');"
        "metrics.gauge('stage_seconds', 1.5, stage='Index'); sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_short_lived_workers_counted_is_not_lost(ray_cluster):
    import ray

    def work() -> None:
        metrics.count("rows", 2, stage="Short")

    class Worker:
        def work(self) -> None:
            work()

    before = scrape()
    # Each task in a process of its own, which ends with it.
    task = ray.remote(max_calls=1, num_cpus=0.1)(work)
    ray.get([task.remote() for _ in range(3)])
    actor = ray.remote(Worker).options(num_cpus=0.1).remote()
    ray.get(actor.work.remote())
    ray.kill(actor)
    wait_for({sample("ray_poisoncam_rows_total", stage="Short"): 8}, before)


def test_what_cannot_be_counted_does_no_harm(ray_cluster):
    before = scrape()
    metrics.count("rows", 0, stage="Unfit")
    metrics.count("rows", -1, stage="Unfit")
    metrics.count("rows", "many", stage="Unfit")
    metrics.count("rows", 1, stage=None)
    metrics.gauge("stage_seconds", "long", stage="Unfit")
    metrics.count("retries")
    metrics.count("retries", 4)
    wait_for({sample("ray_poisoncam_retries_total"): 5}, before)
    assert not [tags for _, tags in scrape() if ("stage", "Unfit") in tags]


def test_index_counts_its_rows_its_dead_by_kind_and_its_seconds(ray_cluster, tmp_path):
    corpus = draw_small(tmp_path / "corpus", n_images=60)
    broken = [{"bytes": data, "path": None} for data in (b"", b"", b"no image")]
    pq.write_table(pa.table({"image": broken}), corpus / "part-00009.parquet")
    config = load_config("demo", None, ["corpus.rows_per_slice=16"])
    before = scrape()
    runner = Runner(str(corpus), str(tmp_path / "run"), config, [Index()])
    ledger = runner.run(Progress(Console(quiet=True)))[0].manifest.ledger
    assert ledger is not None and ledger.dead == 3
    counted = {
        sample("ray_poisoncam_rows_total", stage="Index"): ledger.rows_out,
        sample("ray_poisoncam_dead_total", stage="Index", kind="empty"): 2,
        sample("ray_poisoncam_dead_total", stage="Index", kind="undecodable"): 1,
    }
    wait_for(counted, before, shown=sample("ray_poisoncam_stage_seconds", stage="Index"))
