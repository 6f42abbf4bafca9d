import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import BYOL, regression_loss


def tiny_byol() -> BYOL:
    torch.manual_seed(0)
    return BYOL(build_encoder("resnet_tiny_s2", 16), hidden_dim=32, out_dim=8)


def loss_by_hand(p, t):
    """Squared distance of unit vectors, image by image, in Python floats."""
    total = 0.0
    for a, b in zip(p.tolist(), t.tolist(), strict=True):
        length_a, length_b = math.hypot(*a), math.hypot(*b)
        total += sum((x / length_a - y / length_b) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(p)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), dim=st.integers(2, 6), seed=st.integers(0, 99))
def test_loss_equals_the_sum_over_images(n, dim, seed):
    p, t = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed))
    loss = float(regression_loss(p, t))
    assert loss == pytest.approx(loss_by_hand(p, t), rel=1e-4)
    assert loss == pytest.approx(float(2 - 2 * torch.cosine_similarity(p, t).mean()), abs=1e-5)
    assert float(regression_loss(3 * p, t / 7)) == pytest.approx(loss, rel=1e-4)


def test_each_view_predicts_the_target_of_the_other():
    model, (v1, v2) = tiny_byol(), torch.rand(2, 6, 3, 16, 16)
    # Another target than the online network, or mixing the two up would go unseen.
    with torch.no_grad():
        for p in model.target_encoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    p1, p2 = (model.predictor(model.projector(model.encoder(v))) for v in (v1, v2))
    t1, t2 = (model.target_projector(model.target_encoder(v)) for v in (v1, v2))
    by_hand = loss_by_hand(p1, t2) + loss_by_hand(p2, t1)
    assert model(v1, v2).item() == pytest.approx(by_hand, rel=1e-4)
    assert abs(by_hand - loss_by_hand(p1, t1) - loss_by_hand(p2, t2)) > 1e-3


def test_a_few_steps_bring_the_loss_down_and_features_stay_apart():
    model = tiny_byol()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    x = torch.rand(16, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    losses = []
    for _ in range(20):
        model.update_target(0.9)
        loss = model(x, x.flip(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    z = torch.nn.functional.normalize(model.projector(model.encoder(x)), dim=1)
    alike = (z @ z.T)[~torch.eye(len(z), dtype=torch.bool)].mean().item()
    assert alike < 0.8
