import pytest
import yaml

from poisoncam_ray.errors import UserError
from poisoncam_ray.research.study.grid import GRIDS, load_grid
from tests.research.study.small_grid import SMALL


def written(tmp_path, **changed):
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(SMALL | changed))
    return str(file)


def test_every_grid_of_ours_is_valid_and_the_defaults_lie_on_it():
    names = {file.stem for file in GRIDS.glob("*.yaml")}
    assert {"small", "full"} <= names
    for name in names:
        grid = load_grid(name)
        assert grid.base.masks in grid.masks and grid.base.window in grid.windows


def test_what_the_command_line_says_wins(tmp_path):
    grid = load_grid(written(tmp_path, images=9, seed=4), images=7)
    assert (grid.images, grid.seed) == (7, 4)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"strategies": ["interval", "sldiing"]}, "sldiing"),
        ({"scores": []}, "scores must hold at least one"),
        ({"masks": [8, 8]}, "none twice"),
        ({"masks": [6]}, "multiple of 4"),
        ({"windows": [0.35, 1.5]}, "windows.1=1.5"),
        ({"window": [0.35]}, "there is no key 'window'"),
        ({"base": {"masks": 64}}, "base.masks=64 is none of masks"),
        ({"images": 0}, "images=0"),
        ({"hidings": ["hide"]}, "hidings.0='hide'"),
        ({"refines": [{"hidden": 26}]}, "refines.0.hidden=26"),
        ({"refines": [None, {"hidden": 0, "shown": False}]}, "needs shown or hidden shifts"),
        ({"hidings": ["drop"]}, "base.hiding=paint is none of hidings"),
        ({"hidings": ["paint", "drop"], "windows": [0.3, 1]}, "a window is as large as the image"),
        ({"hidings": ["paint", "drop"], "cells": [0.25, 0.9]}, "a cell of full_coverage covers the image"),
    ],
)
def test_a_bad_grid_is_one_sentence(tmp_path, changed, told):
    with pytest.raises(UserError, match=told) as error:
        load_grid(written(tmp_path, **changed))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"), [("a: [", "not YAML"), ("- 1", "must hold keys"), ("", "must hold keys")]
)
def test_a_file_that_is_no_grid_is_told(tmp_path, content, told):
    file = tmp_path / "grid.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=told):
        load_grid(str(file))


def test_an_unknown_grid_names_those_there_are():
    with pytest.raises(UserError, match=r"no grid 'huge'.*full, hiding, small"):
        load_grid("huge")


def test_a_missing_axis_is_named(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in SMALL.items() if key != "cells"}))
    with pytest.raises(UserError, match="'cells' is missing"):
        load_grid(str(file))
