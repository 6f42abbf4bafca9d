"""Ways of hiding against the base, image by image, with rows made up by hand."""

import pyarrow as pa
import pytest

from poisoncam_ray.folder import Folder
from poisoncam_ray.research.study.pairs import Pair, pairs_of
from poisoncam_ray.research.study.plan import SCHEMA
from poisoncam_ray.research.study.results import write_results
from tests.research.study.small_grid import invented_rows, small_grid

REFINED = {"hidden": 5, "passes": 2}
LABEL = "25 shown + 5 hidden × 2"
GRID = small_grid(
    hidings=["paint", "drop"], refines=[None, REFINED], masks=[16], windows=[0.3], k_factors=[1]
)


def made(base: dict[str, str], ours: dict[str, str]) -> pa.Table:
    """Rows in which all ways find some images of a run, and the dropped, refined mixed masks others."""
    rows = invented_rows(GRID, len(base)).to_pylist()
    for row in rows:
        way = (row["strategy"], row["hiding"], row["refine"])
        row["found"] = (ours if way == ("mixed", "drop", LABEL) else base)[row["run"]]
    return pa.Table.from_pylist(rows, SCHEMA)


def test_images_of_all_runs_are_counted_one_by_one():
    rows = made({"run-0": "1100", "run-1": "10"}, {"run-0": "0111", "run-1": "00"})
    pairs = {(p.setting["strategy"], p.setting["hiding"], p.setting["refine"]): p
             for p in pairs_of(rows, GRID) if p.setting["strategy"] == "mixed"}  # fmt: skip
    assert set(pairs) == {("mixed", "drop", None), ("mixed", "drop", LABEL), ("mixed", "paint", LABEL)}
    pair = pairs["mixed", "drop", LABEL]
    assert (pair.n, pair.hits, pair.base_hits, pair.only, pair.only_base) == (6, 3, 3, 2, 2)
    assert pair.difference == 0 and pair.p == 1
    same = pairs["mixed", "paint", LABEL]
    assert (same.only, same.only_base, same.interval) == (0, 0, (0, 0))


def test_a_run_without_the_base_is_left_out():
    rows = made({"run-0": "11", "run-1": "11"}, {"run-0": "10", "run-1": "00"}).to_pylist()
    rows = [r for r in rows if not (r["run"] == "run-1" and r["hiding"] == "paint")]
    pairs = pairs_of(pa.Table.from_pylist(rows, SCHEMA), GRID)
    (pair,) = (p for p in pairs if (p.setting["strategy"], p.setting["refine"]) == ("mixed", LABEL)
               and p.setting["hiding"] == "drop")  # fmt: skip
    assert (pair.n, pair.only, pair.only_base) == (2, 0, 1)
    alone = [r for r in rows if r["strategy"] != "mixed"]
    assert pairs_of(pa.Table.from_pylist(alone, SCHEMA), GRID) == []


@pytest.mark.parametrize(
    ("only", "only_base", "p"),
    # Of five uneven coins all on one side: 2 / 2⁵. 19 and 32: from a table of the binomial distribution.
    [(0, 0, 1.0), (0, 5, 0.0625), (5, 0, 0.0625), (3, 3, 1.0), (19, 32, 0.0919)],
)
def test_p_is_that_of_a_fair_coin(only, only_base, p):
    pair = Pair({}, 0.0, 300, 0, 0, only, only_base)
    assert pair.p == pytest.approx(p, abs=5e-4)


def test_the_interval_widens_with_disagreement():
    calm, torn = (Pair({}, 0.0, 300, 0, 0, 19 + more, 32 + more) for more in (0, 60))
    assert calm.difference == torn.difference == pytest.approx(-13 / 300)
    # The deviation of 51 signs over 300 images: √51 / 300 = 0.024.
    assert calm.interval == pytest.approx((-13 / 300 - 0.047, -13 / 300 + 0.047), abs=2e-3)
    assert torn.interval[0] < calm.interval[0] and torn.interval[1] > calm.interval[1]


def test_the_text_shows_pairs_only_where_hiding_varies(tmp_path):
    rows = made({"run-0": "1" * 16 + "0" * 4}, {"run-0": "0" * 4 + "1" * 16})
    write_results(rows, GRID, Folder(str(tmp_path / "varied")))
    said = (tmp_path / "varied" / "study.md").read_text()
    assert "## Ways of hiding, image by image" in said and "windows 0.3 of the image side, painted." in said
    (line,) = (s for s in said.splitlines() if s.startswith(f"| mixed, dropped, refined by {LABEL} | 16 |"))
    assert "| 20 | 0.800 | 0.800 | 4 | 4 | +0.000 [" in line and line.endswith("| 1 |")
    plain = small_grid()
    write_results(invented_rows(plain, runs=1), plain, Folder(str(tmp_path / "plain")))
    said = (tmp_path / "plain" / "study.md").read_text()
    assert "image by image" not in said and "painted" not in said and "before refinement" in said
