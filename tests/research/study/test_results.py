import csv
import xml.etree.ElementTree as ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from poisoncam_ray.folder import Folder
from poisoncam_ray.research.study.grid import load_grid
from poisoncam_ray.research.study.lines import over_cost
from poisoncam_ray.research.study.plan import SCHEMA
from poisoncam_ray.research.study.plots import cost_plot
from poisoncam_ray.research.study.poison_rate import by_poison_rate
from poisoncam_ray.research.study.results import write_results
from poisoncam_ray.research.study.summary import cube_of
from tests.research.study.small_grid import invented_rows, small_grid

KINDS = {"gradcam", "random window", "interval", "full coverage", "sliding", "mixed"}


def written(tmp_path, text: str) -> Folder:
    (tmp_path / "results.csv").write_text(text)
    return Folder(str(tmp_path))


def texts(path) -> set[str]:
    return {e.text for e in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")}


@pytest.fixture
def table(tmp_path):
    return written(
        tmp_path,
        "seed,poison_rate,asr,recall,false_positive_rate\n"
        "1,0.01,0.5,0.9,0.001\n2,0.01,0.7,1,0.002\n1,0.05,0.9,1,\n",
    )


def test_the_same_rows_give_the_same_files(tmp_path, table):
    grid = small_grid()
    rows = invented_rows(grid, runs=3)
    once, again = tmp_path / "once", tmp_path / "again"
    names = write_results(rows, grid, Folder(str(once)), table)
    assert write_results(rows, grid, Folder(str(again)), table) == names
    assert {path.name for path in once.iterdir()} == set(names)
    for name in names:
        assert (once / name).read_bytes() == (again / name).read_bytes(), name
    assert pq.read_table(once / "study.parquet").equals(rows)
    with open(once / "study.csv") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    plots = [name for name in names if name.endswith(".svg")]
    assert len(plots) == 5
    for name in plots:
        assert ElementTree.parse(once / name).getroot().tag.endswith("svg")
        assert f"({name})" in (once / "study.md").read_text()
    assert texts(once / "accuracy_by_forwards.svg") >= KINDS | {"score: hard", "score: margin", "4", "16"}
    # 4 and 16 forwards of 12.345 MFLOPs.
    assert texts(once / "accuracy_by_forwards.svg") >= {"0.049", "0.2"}
    assert texts(once / "poison_rate.svg") >= {"attack success", "recall", "false positive rate", "1", "5"}


def test_the_plot_of_the_largest_grid_stays_small():
    full = load_grid("full")
    # The plot over cost shows the base only: the other values would only take time here.
    grid = full.model_copy(update={"cells": (0.125,), "windows": (0.35,), "k_factors": (3.0,)})
    cube = cube_of(invented_rows(grid, runs=3), 0)
    svg = cost_plot({score: over_cost(cube, grid, score) for score in grid.scores}, grid.masks, 1e9)
    assert len(svg) < 60_000
    assert svg.count("<use") > 3 * 6 * 7, "every point has its marker"


def test_the_text_names_the_winner_and_the_best(tmp_path):
    grid = small_grid()
    rows = invented_rows(grid, runs=2).to_pylist()
    for row in rows:
        best = (row["strategy"], row["score"], row["masks"]) == ("sliding", "margin", 16)
        row["accuracy"] = 0.95 if best else 0.3 if row["score"] == "hard" else 0.4
    write_results(pa.Table.from_pylist(rows, SCHEMA), grid, Folder(str(tmp_path)))
    said = (tmp_path / "study.md").read_text()
    assert "| 16 | 0.198 | sliding | margin | – | 0.3 | 0.3 | 0.950 [0.950, 0.950]" in said
    assert "| 16 | 0.25 | sliding, margin | 0.950 [0.950, 0.950] |" in said
    assert "| interval | 0.300 [0.300, 0.300] | 0.100 [0.100, 0.100] | 0.100 [0.100, 0.100] |" in said
    assert "fewer than 5 seeds (here 2)" in said


def test_poison_rates_are_means_over_their_runs(table):
    rates = by_poison_rate(table, seed=0)
    assert list(rates) == [0.01, 0.05]
    assert rates[0.01]["asr"].mean == pytest.approx(0.6) and rates[0.01]["asr"].low >= 0.5
    assert set(rates[0.05]) == {"asr", "recall"}, "what no run tells is left out"


def test_rates_are_those_of_the_reference_attack(tmp_path):
    text = "kind,poison_rate,recall\npatch,0.01,1\nblended,0.01,0\nclean,0.0,\nblended,0.05,1\n"
    rates = by_poison_rate(written(tmp_path, text), 0)
    assert list(rates) == [0.01] and rates[0.01]["recall"].mean == 1


def test_rates_of_tables_further_down_count_as_their_runs_do(tmp_path):
    for name, rows in (("a", "1,0.01,1\n"), ("b/c", "2,0.01,0.5\n2,0.02,1\n")):
        (tmp_path / name).mkdir(parents=True)
        written(tmp_path / name, "seed,poison_rate,recall\n" + rows)
    rates = by_poison_rate(Folder(str(tmp_path)), 0)
    assert {rate: marks["recall"].mean for rate, marks in rates.items()} == {0.01: 0.75, 0.02: 1}


def test_a_table_without_rates_or_marks_is_taken_as_it_is(tmp_path):
    assert by_poison_rate(Folder(str(tmp_path)), 0) == {}
    counted = by_poison_rate(written(tmp_path, "recall,n_poisoned,n_images\n0.5,30,3000\nx,31,3000\n"), 0)
    assert {rate: set(marks) for rate, marks in counted.items()} == {0.01: {"recall"}}
    assert by_poison_rate(written(tmp_path, "seed,recall\n1,0.5\n"), 0) == {}
    assert by_poison_rate(written(tmp_path, ""), 0) == {}
