"""Configuration: layers, validation, and sentences that say what to change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisoncam_ray.config import Config
from poisoncam_ray.errors import UserError
from poisoncam_ray.fingerprint import differences, fingerprint
from poisoncam_ray.method.masks import cell_of_patches, make_masks
from poisoncam_ray.method.tokens import shown_patches
from poisoncam_ray.research.evaluate.peer import PEER
from poisoncam_ray.settings import load_config, presets
from poisoncam_ray.stages.judge import Judge
from tests.small import ROOT

README = ROOT / "README.md"


def test_overrides_win_over_file_and_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("pretrain: {epochs: 7, lr: 1e-3}\nsearch: {masks: 32}\n")
    config = load_config("imagenet100", str(file), ["search.masks=16", "cluster.k=null"])
    assert (config.pretrain.epochs, config.pretrain.lr, config.search.masks) == (7, 1e-3, 16)
    assert config.encoder.image_size == 224
    assert config.cluster.k is None


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_preset_is_valid_and_in_the_readme(name):
    assert isinstance(load_config(name), Config)
    cells = [line.split("|")[1] for line in README.read_text().splitlines() if line.startswith("| ")]
    assert [cell for cell in cells if f"`{name}`" in cell]


def test_the_published_methods_have_the_encoder_of_tiny_cnn():
    """They are compared by their searches: nothing else may differ, but the paper's number of models."""
    ours, paper, peer = (load_config(name) for name in ("tiny-cnn", "paper", "patchsearch"))
    assert peer.search == ours.search.model_copy(update=PEER)
    for theirs in (paper, peer):
        same = {"search": ours.search, "verdict": ours.verdict, "classify": theirs.classify}
        assert theirs.model_copy(update=same) == ours.model_copy(update=same)
        assert theirs.verdict.false_alarm_rate == 1
    assert peer.classify == ours.classify
    assert paper.classify == ours.classify.model_copy(update={"models": 5})
    assert (paper.search.strategy, paper.search.score, paper.search.masks) == ("full_coverage", "hard", 256)
    assert (paper.search.reading, paper.search.refine) == ("changed", False)


def test_without_a_preset_the_settings_are_those_that_were_measured():
    """But for the training workers: the default must run on one CPU."""
    plain, measured = load_config(None, None, ["pretrain.workers=2"]), load_config("tiny-cnn")
    assert plain == measured.model_copy(update={"resources": plain.resources})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("corpus.max_dead_fraction=1.01", "corpus.max_dead_fraction=1.01"),
        ("corpus.max_dead_fraction=-0.1", "corpus.max_dead_fraction=-0.1"),
        ("search.maks=3", "did you mean 'search.masks'"),
        ("serach.masks=3", "did you mean 'search"),
        ("search.masks=0", "search.masks=0"),
        ("search.prune=1.5", "search.prune=1.5"),
        ("search.window=0.01", "search.window=0.01 of 32 px"),
        ("search.window=1.5", "search.window=1.5"),
        ("search.strategy=magic", "search.strategy='magic'"),
        ("pretrain.objective=moco", "pretrain.objective='moco'"),
        ("pretrain.batch_size=many", "pretrain.batch_size='many'"),
        ("encoder.patch_size=5", "does not divide"),
        ("pretrain.workers=3", "multiple of pretrain.workers"),
        ("pretrain.workers=128", "every worker two images"),
        ("pretrain.max_images=100", "pretrain.max_images=100 is less than one batch"),
        ("pretrain.sample=0", "pretrain.sample=0"),
        ("classify.steps=5", "classify.steps=5"),
        ("classify.top_k=201", "classify.top_k=201"),
        ("search.masks", "section.key=value"),
        ("classify.paste_min=0.9", "paste_min must not exceed paste_max"),
    ],
)
def test_mistakes_are_told_in_one_sentence(override, words):
    with pytest.raises(UserError) as caught:
        load_config(overrides=[override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("larger", ["search.window=1", "search.scales=[1,3]"])
def test_a_window_as_large_as_the_image_cannot_be_dropped(larger):
    load_config(overrides=[larger])
    load_config(overrides=["search.hiding=drop"])
    with pytest.raises(UserError, match=r"leaves no token .* use search\.hiding=paint"):
        load_config(overrides=["search.hiding=drop", larger])


def test_a_refinement_by_nothing_is_refused():
    nothing = ["search.refine_shown=false", "search.refine_hidden=0"]
    load_config(overrides=[nothing[0], "search.refine_hidden=1"])
    load_config(overrides=[*nothing, "search.refine=false"])
    with pytest.raises(UserError, match=r"leaves nothing to refine by: set search\.refine=false"):
        load_config(overrides=nothing)


@pytest.mark.parametrize("cell", [0.51, 0.95, 1.0])
def test_a_cell_that_hides_all_tokens_is_refused_at_once(cell):
    """Rounded to whole patches, a cell of 0.95 covers an image of 8 patches a side."""
    overrides = ["search.strategy=full_coverage", f"search.cell={cell}"]
    load_config(overrides=overrides)
    load_config(overrides=[overrides[1], "search.hiding=drop"])
    with pytest.raises(UserError, match=r"search\.cell=.* leave no token .* search\.hiding=paint"):
        load_config(overrides=[*overrides, "search.hiding=drop"])


@pytest.mark.parametrize(("side", "patch"), [(32, 4), (48, 4), (64, 16), (224, 14), (224, 16), (224, 32)])
@pytest.mark.parametrize("cell", [0.01, 0.125, 0.3, 0.5])
def test_masks_of_cells_that_are_allowed_leave_tokens(side, patch, cell):
    config = load_config(overrides=["search.strategy=full_coverage", "search.hiding=drop", "search.masks=64",
                                    f"search.cell={cell}", f"encoder.image_size={side}"])  # fmt: skip
    cells = cell_of_patches(config.cell_px, patch)
    m_BHW = make_masks("full_coverage", 64, side, cells, config.window_px, torch.Generator().manual_seed(0))
    assert shown_patches(m_BHW, patch).any(dim=1).all()


@pytest.mark.parametrize("text", ["models/run #3.safetensors", "a: b.safetensors", "7", "1e3", "true", "a=b"])
def test_text_is_taken_as_it_is_written(text):
    config = load_config(overrides=[f"encoder.checkpoint={text}", f"corpus.image_column={text}"])
    assert config.encoder.checkpoint == config.corpus.image_column == text
    overrides = [f"corpus.image_column={text}", "corpus.image_column=null"]
    assert load_config(overrides=overrides).corpus.image_column is None


def test_unknown_preset_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="did you mean 'imagenet100'"):
        load_config("imagenet10")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(file=str(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_config(file=str(broken))
    broken.write_text("- a list")
    with pytest.raises(UserError, match="sections"):
        load_config(file=str(broken))


def test_differences_name_the_key_and_both_values():
    then, now = Config().model_dump(), load_config(overrides=["search.window=0.3"]).model_dump()
    assert differences(then, now) == ["search.window: 0.35 then, 0.3 now"]


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=6))
def test_fingerprint_is_blind_to_order_and_sees_values(tree):
    assert fingerprint(tree) == fingerprint(dict(reversed(tree.items())))
    assert fingerprint(tree) != fingerprint({**tree, "another": 1})


def test_a_slice_leaves_room_for_a_part_of_each_long_image_in_both_views():
    # Not when settings are read: those of an earlier run stay readable.
    large = load_config(overrides=["encoder.image_size=512"])
    with pytest.raises(UserError, match=r"rows_per_slice=1024 images of 512 px.* use at most 910"):
        Judge().check(large, None)
    Judge().check(load_config(overrides=["encoder.image_size=512", "corpus.rows_per_slice=910"]), None)
    Judge().check(load_config(overrides=["encoder.image_size=480"]), None)
