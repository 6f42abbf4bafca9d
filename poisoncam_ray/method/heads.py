"""The heads that pretraining puts on a backbone and throws away afterwards."""

import itertools

from torch import nn


def mlp(*widths: int, norm_last: bool = True) -> nn.Sequential:
    """Linear layers, each normalised over the batch; ReLU in between, none and no affine after the last.

    `norm_last` false leaves the last layer as it is, with a bias: BYOL's heads (arXiv 2006.07733 §3.3).
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=2):
        last = i == len(widths)
        if last and not norm_last:
            layers.append(nn.Linear(n_in, n_out))
            continue
        layers += [nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
