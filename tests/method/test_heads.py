import torch

from poisoncam_ray.method.ssl import mlp


def test_outputs_are_normalised_over_the_batch_where_asked():
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    for widths in [(5, 3), (5, 16, 3), (5, 16, 16, 3)]:
        y = mlp(*widths)(x)
        assert y.shape == (64, 3)
        torch.testing.assert_close(y.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(y.var(0, correction=0), torch.ones(3), rtol=0, atol=1e-2)
        plain = mlp(*widths, norm_last=False)(x)
        assert plain.shape == (64, 3)
        assert (plain.mean(0).abs() > 1e-3).any()


def test_only_a_last_layer_that_is_not_normalised_has_a_bias():
    def biased(head):
        return [layer.bias is not None for layer in head if isinstance(layer, torch.nn.Linear)]

    assert biased(mlp(5, 8, 8, 3)) == [False, False, False]
    assert biased(mlp(5, 8, 8, 3, norm_last=False)) == [False, False, True]
    assert all(p.requires_grad for p in mlp(5, 8, 3).parameters())


def test_layers_before_the_last_cut_off_what_is_negative():
    head = mlp(5, 8, 3, norm_last=False)
    assert (head[:-1](torch.randn(32, 5)) >= 0).all()
    assert (head(torch.randn(32, 5)) < 0).any()
