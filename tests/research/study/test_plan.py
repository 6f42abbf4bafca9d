from collections import Counter
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.research.study.grid import READS_CELL, READS_WINDOW, REFERENCES
from poisoncam_ray.research.study.plan import passes
from tests.research.study.small_grid import invented_rows, small_grid

some = st.lists(st.sampled_from([4, 8, 16]), min_size=1, max_size=3, unique=True)
fractions = st.lists(st.sampled_from([0.25, 0.3, 0.4]), min_size=1, max_size=3, unique=True)
strategies = st.lists(
    st.sampled_from([*READS_CELL, *READS_WINDOW, *REFERENCES]), min_size=1, max_size=5, unique=True
)


@given(masks=some, cells=fractions, windows=fractions, strategies=strategies)
def test_passes_cover_every_setting_exactly_once(masks, cells, windows, strategies):
    grid = small_grid(
        masks=masks, cells=cells, windows=windows, strategies=strategies,
        base={"k_factor": 1, "masks": masks[0], "cell": cells[0], "window": windows[0]},
    )  # fmt: skip
    got = Counter(
        (todo.run, todo.strategy, b, todo.cell, window)
        for todo in passes(grid, ["a", "b"])
        for b in todo.masks or [None]
        for window in todo.windows
    )
    wanted = Counter(
        (run, strategy, b, cell, window)
        for run, strategy in product("ab", strategies)
        for b in ([None] if strategy in REFERENCES else masks)
        for cell in (cells if strategy in READS_CELL else [None])
        for window in windows
    )
    assert got == wanted


def test_masks_of_cells_go_through_the_encoder_once_for_every_b_and_window():
    of_interval = [todo for todo in passes(small_grid(), ["a"]) if todo.strategy == "interval"]
    assert [(todo.masks, todo.windows) for todo in of_interval] == [((4, 16), (0.3, 0.4))]


def test_masks_of_windows_are_read_by_their_own_window_only():
    assert all(
        len(todo.windows) == len(todo.masks) == 1
        for todo in passes(small_grid(), ["a"])
        if todo.strategy in READS_WINDOW
    )


def test_the_invented_rows_are_as_many_as_the_settings():
    grid = small_grid()
    rows = invented_rows(grid, runs=2)
    # interval, full coverage, sliding and mixed, then the two references.
    assert len(rows) == 2 * (4 * 3 * 2 * 2 * 2 + 2 * 2 * 2)


def test_each_way_of_hiding_is_a_pass_and_refinement_is_none():
    varied = small_grid(hidings=["paint", "drop"], refines=[None, {"hidden": 5}], windows=[0.3])
    hidden = Counter((todo.strategy, todo.hiding) for todo in passes(varied, ["a"]))
    assert hidden["mixed", "paint"] == hidden["mixed", "drop"] == 2
    assert hidden["gradcam", None] == 1
    plain = passes(small_grid(windows=[0.3]), ["a"])
    assert Counter((t.strategy, t.hiding) for t in plain) == {
        k: n for k, n in hidden.items() if k[1] != "drop"
    }
