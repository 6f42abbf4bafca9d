import pytest

from poisoncam_ray.method.ssl import learning_rate_at


def test_learning_rate_warms_up_then_falls_along_a_cosine():
    rate = [learning_rate_at(step, 110, 10, 2e-3) for step in range(111)]
    assert rate[0] == 0
    assert rate[5] == pytest.approx(1e-3)
    assert rate[10] == max(rate) == pytest.approx(2e-3)
    assert rate[60] == pytest.approx(1e-3)
    assert rate[110] == pytest.approx(0, abs=1e-12)
    assert rate[10:] == sorted(rate[10:], reverse=True)


def test_learning_rate_without_warmup_starts_at_base():
    assert learning_rate_at(0, 100, 0, 1.0) == 1.0
