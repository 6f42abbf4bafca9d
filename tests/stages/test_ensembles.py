"""The scores of an image by the ensembles of several families, and which family's trigger is on it."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from torch import nn

from poisoncam_ray import artifact
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.classifier import PoisonClassifier, choose_threshold, poison_logit
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.crops import to_png
from poisoncam_ray.stages.ensembles import Ensembles, load_ensembles


class Channel(nn.Module):
    """The first pixel of one channel, as a logit of 0 … 255."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, x_BCHW):
        return 255 * x_BCHW[:, self.channel, 0, 0]


class Given(nn.Module):
    """Logits that were made up: the input, which Ensembles divides by 255."""

    def forward(self, x_B1):
        return 255 * x_B1[:, 0]


def image(*colour: int) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 2, 2)


def test_each_family_flags_what_is_beyond_its_own_threshold():
    ensembles = Ensembles({1: ([Channel(0)], 100.0), 3: ([Channel(1), Channel(2)], 50.0)}, {})
    x_NCHW = torch.stack(
        [image(99, 49, 49), image(103, 10, 10), image(0, 60, 60), image(130, 60, 60), image(101, 200, 40)]
    )
    p_N, flagged_AN = ensembles.judge(x_NCHW)
    assert flagged_AN.tolist() == [[False, True, False, True, True], [False, False, True, True, True]]
    assert p_N[:2].tolist() == pytest.approx(torch.tensor([-1.0, 3.0]).sigmoid().tolist())
    assert torch.equal(p_N > 0.5, flagged_AN.any(dim=0))


def test_above_a_half_is_poison_and_nothing_else():
    cuts = [100 - 1e-6, 100.0, 100 + 1e-6, 99.99, 101.0]
    for cut in cuts:
        p_N, flagged_AN = Ensembles({2: ([Channel(0)], cut)}, {}).judge(image(100, 0, 0)[None])
        assert (float(p_N) > 0.5) == bool(flagged_AN[0, 0]), cut


def test_a_probability_of_exactly_a_half_is_not_flagged():
    class Hair(nn.Module):
        def forward(self, x_BCHW):
            return torch.full((len(x_BCHW),), 1e-9)

    p_N, flagged_AN = Ensembles({1: ([Hair()], 0.0)}, {}).judge(image(0, 0, 0)[None])
    assert (float(p_N), bool(flagged_AN[0, 0])) == (0.5, False)


def test_the_worst_of_several_looks_flags_no_more_clean_images_than_one_look():
    """Logits of clean images, whose upper tails thin out as a normal and an exponential distribution do."""
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    for l_N in (torch.randn(n, generator=generator), torch.empty(n).exponential_(generator=generator)):
        pastes_V = 40 + torch.randn(200, generator=generator)
        tail = choose_threshold(pastes_V, l_N[: n // 2])["tail"]
        cut = float(l_N[n // 2 :].quantile(0.99))
        ensembles = Ensembles({1: ([Given()], cut)}, {}, {1: tail})
        one = ensembles.judge(l_N[n // 2 :, None])[1].float().mean()
        for looks in (2, 3, 5, 9):
            places_NL = torch.randint(n // 2, n, (n // 2, looks), generator=generator)
            worst_N = l_N[places_NL].amax(dim=1)
            flagged = ensembles.judge(worst_N[:, None], torch.full((n // 2,), looks))[1].float().mean()
            assert flagged <= 1.2 * one
            # Without the higher threshold it would be nearly as many times as many as there are looks.
            assert ensembles.judge(worst_N[:, None])[1].float().mean() > 0.8 * looks * one


def test_one_look_changes_no_score_and_the_trigger_is_still_found_by_many():
    ensembles = Ensembles({1: ([Given()], 2.0)}, {}, {1: 0.7})
    l_N1 = torch.tensor([[-3.0], [2.5], [8.0]])
    plain, one = ensembles.judge(l_N1), ensembles.judge(l_N1, torch.ones(3))
    assert torch.equal(plain[0], one[0]) and torch.equal(plain[1], one[1])
    assert ensembles.judge(l_N1, torch.tensor([9, 9, 9]))[1].tolist() == [[False, False, True]]


def test_without_families_nothing_is_poison(tmp_path):
    out = Folder(str(tmp_path))
    out.write_json(artifact.VALIDATION, {"families": {}})
    ensembles, x_NCHW = load_ensembles(load_config(), out), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    p_N, flagged_AN = ensembles.judge(x_NCHW)
    assert p_N.tolist() == [0.0] * 4 and flagged_AN.shape == (0, 4)
    family_N, box_N4 = ensembles.locate(x_NCHW, flagged_AN)
    assert family_N.tolist() == [0] * 4 and box_N4.tolist() == [[-1] * 4] * 4


def test_of_families_that_flag_an_image_it_is_of_the_one_whose_trigger_is_on_it():
    generator = torch.Generator().manual_seed(0)
    one_Chw, other_Chw = torch.rand(2, 3, 6, 6, generator=generator)
    x_NCHW = torch.full((5, 3, 24, 24), 0.5)
    for n, (t_Chw, at) in enumerate(
        ((one_Chw, 3), (other_Chw, 11), (one_Chw, 7), (other_Chw, 9), (one_Chw, 5))
    ):
        x_NCHW[n, :, at : at + 6, 2 : 2 + 6] = t_Chw
    x_NCHW = (255 * x_NCHW).round().to(torch.uint8)
    ensembles = Ensembles({1: ([], 0.0), 4: ([], 0.0)}, {1: [one_Chw], 4: [other_Chw]})
    flagged_AN = torch.tensor([[True, True, False, True, True], [True, True, False, True, False]])
    family_N, box_N4 = ensembles.locate(x_NCHW, flagged_AN)
    assert family_N.tolist() == [1, 4, 0, 4, 1]
    assert box_N4.tolist() == [[2, 3, 8, 9], [2, 11, 8, 17], [-1] * 4, [2, 9, 8, 15], [2, 5, 8, 11]]


@pytest.mark.parametrize("known", [True, False])
def test_a_trigger_is_boxed_on_images_of_other_aspects(known):
    """The picture is cut from an image of 2:1, in which a trigger of 12 × 12 px is squeezed to 6 × 12."""
    whole_1CHW = torch.nn.functional.interpolate(
        torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2)), (12, 12)
    )
    aspects, sizes = [1.0, 2.0, 0.5, 1.0], [(12, 12), (12, 6), (6, 12), (12, 12)]
    x_NCHW = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)) / 4
    wanted = []
    for n, (h, w) in enumerate(sizes):
        small_Chw = torch.nn.functional.interpolate(whole_1CHW, (h, w), mode="area")[0]
        x_NCHW[n, :, 9 : 9 + h, 5 + n : 5 + n + w] = small_Chw
        wanted.append([5 + n, 9, 5 + n + w, 9 + h])
    picture_Chw = torch.nn.functional.interpolate(whole_1CHW, (12, 6), mode="area")[0]
    ensembles = Ensembles({1: ([], 0.0)}, {1: [picture_Chw]}, {}, {1: [2.0]} if known else {})
    x_NCHW, flagged_AN = (255 * x_NCHW).round().to(torch.uint8), torch.ones(1, 4, dtype=torch.bool)
    _, box_N4 = ensembles.locate(x_NCHW, flagged_AN, torch.tensor(aspects))
    right = [box == true for box, true in zip(box_N4.tolist(), wanted, strict=True)]
    assert right == ([True] * 4 if known else [False, True, False, False])


def test_a_family_that_does_not_flag_an_image_is_not_chosen():
    t_Chw = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    x_NCHW = torch.full((1, 3, 24, 24), 0.5)
    x_NCHW[0, :, 4:10, 5:11] = t_Chw
    ensembles = Ensembles({1: ([], 0.0), 2: ([], 0.0)}, {1: [t_Chw], 2: [1 - t_Chw]})
    family_N, _ = ensembles.locate((255 * x_NCHW).round().to(torch.uint8), torch.tensor([[False], [True]]))
    assert family_N.tolist() == [2]


def test_ensembles_come_back_with_their_thresholds(tmp_path):
    out, config = Folder(str(tmp_path)), load_config(overrides=["classify.models=2"])
    made = {}
    for family in (1, 2):
        torch.manual_seed(family)
        made[family] = [PoisonClassifier(32).eval() for _ in range(2)]
        for i, model in enumerate(made[family]):
            out.write_tensors(artifact.model_name(family, i), model.state_dict())
    chosen = {
        str(family): {"threshold_logit": family / 4, "erased": True, "tail": family / 8} for family in made
    }
    rows = [
        {"family": family, "picture": to_png(torch.full((3, size, 5), grey))}
        for family, size, grey in ((1, 5, 0.2), (2, 7, 0.6), (2, 3, 0.8), (3, 5, 1.0))
    ]
    out.write_table(artifact.WHOLE_TRIGGERS, pa.Table.from_pylist(rows, schema=artifact.WHOLE_TRIGGER_SCHEMA))
    out.write_json(artifact.VALIDATION, {"families": chosen})
    assert load_ensembles(config, out).tails == {1: 1 / 8, 2: 2 / 8}
    loaded = load_ensembles(config, out).families
    x_NCHW = torch.randint(0, 256, (3, 3, 32, 32)).to(torch.uint8)
    for family, (models, cut) in loaded.items():
        assert cut == family / 4
        device = next(models[0].parameters()).device
        logit_N = poison_logit(models, x_NCHW.to(device)).cpu()
        ours = poison_logit(made[family], x_NCHW).tolist()
        assert logit_N.tolist() == pytest.approx(ours, rel=1e-3, abs=1e-4)
    assert list(loaded) == [1, 2]
    shown = load_ensembles(config, out).pictures
    assert {f: [(t.shape[1], round(float(t.mean()), 1)) for t in ts] for f, ts in shown.items()} == {
        1: [(5, 0.2)],
        2: [(7, 0.6), (3, 0.8)],
    }
    chosen["1"]["erased"] = False
    out.write_json(artifact.VALIDATION, {"families": chosen})
    assert list(load_ensembles(config, out).families) == [2]
