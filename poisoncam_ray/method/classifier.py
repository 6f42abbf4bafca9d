"""The poison classifier (PoisonCAM, arXiv 2312.07955): find in every image what the search found in a few.

The search's best windows ("crops") are pasted into images of the corpus, and an ensemble of small networks
learns to tell pasted images from others. `choose_threshold` then cuts the ensemble's logits between the
corpus's clean images and images with held-out crops.

x images, uint8 or float in [0, 1]   crops, t windows cut out by the search
B images of a batch   N images of the corpus   V images with held-out crops   M crops
E = 2B positives and negatives of a batch   C channels   H = W image side   w a crop's side
l logits of the corpus   h logits of held-out pastes   G points of the grid of thresholds
"""

import math
from collections.abc import Sequence
from statistics import median

import torch
from torch import Generator, Tensor, nn

from poisoncam_ray.method.augment import color_jitter, gaussian_blur, random_resized_crop
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.geometry import paste, paste_resized, random_places

# Sides of a paste as shares of the image side: the paper pastes at 20 to 80 of 224 pixels.
PASTE_SIZE = (20 / 224, 80 / 224)
# Exponent of generalised cross entropy, the value its authors use (arXiv 1805.07836).
Q = 0.7
# Share of the searched range: smooths single images away and still resolves the gap between two modes.
SMOOTHING = 0.05
# Share of the clean logits, the highest ones, that tell how slowly they thin out.
TAIL = 0.05


class PoisonClassifier(nn.Module):
    """A residual network of four basic blocks with one logit, above 0 for poison.

    Args:
        image_size: side of the input in pixels.
    """

    def __init__(self, image_size: int):
        super().__init__()
        self.encoder = build_encoder("resnet_tiny", image_size)
        self.head = nn.Linear(self.encoder.dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """logit_B of images x_BCHW, float in [0, 1]."""
        return self.head(self.encoder.feature(x_BCHW))[:, 0]


def train_classifier(
    x_NCHW: Tensor,
    crops_MCww: Tensor,
    seed: int,
    steps: int = 150,
    batch: int = 32,
    learning_rate: float = 2e-3,
    paste_size: tuple[float, float] = PASTE_SIZE,
    aspects: float = 1.0,
) -> PoisonClassifier:
    """Train one member of the ensemble; the same arguments give the same weights.

    Some poison may be left among the images; robust_loss limits the harm of such wrong labels.

    Args:
        x_NCHW: uint8, a sample of the corpus without the images that the search suspects.
        crops_MCww: uint8, the best windows.
        seed: of the weights and of all draws.
        steps: of AdamW with a one-cycle learning rate.
        batch: images per step, each shown with and without a crop.
        learning_rate: the highest in the cycle.
        paste_size: least and greatest side of a paste, as shares of the image side. A paste of few pixels
            shows nothing, so small images need larger shares than the paper's.
        aspects: the greatest aspect of the corpus's images over the least, at least 1. They are squeezed into
            squares, so that a trigger is as much wider or narrower on one image than on another.

    Returns:
        The network in evaluation mode.

    Raises:
        ValueError: there is no image or no crop.
    """
    if len(x_NCHW) == 0 or len(crops_MCww) == 0:
        raise ValueError("The poison classifier needs at least one image and one crop to learn from.")
    device = x_NCHW.device
    generator = Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PoisonClassifier(x_NCHW.shape[-1]).to(device)
    # Convolutions are faster in this layout, on CPUs and on tensor cores.
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    crops_MCww = crops_MCww.float() / 255
    model.train()
    for _ in range(steps):
        index_B = torch.randint(len(x_NCHW), (batch,), generator=generator).to(device)
        x_ECHW, target_E = make_training_batch(
            x_NCHW[index_B].float() / 255, crops_MCww, paste_size, generator, aspects
        )
        optimizer.zero_grad(set_to_none=True)
        robust_loss(model(x_ECHW), target_E).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def make_training_batch(
    x_BCHW: Tensor,
    crops_MCww: Tensor,
    paste_size: tuple[float, float],
    generator: Generator,
    aspects: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Make a positive and a negative example of every image.

    A positive has a crop pasted in. Of the negatives about half have a window of another image of the batch
    pasted at the same place and size, and the others nothing.

    Args:
        x_BCHW: images, float in [0, 1].
        crops_MCww: crops, float in [0, 1].
        paste_size: least and greatest side of a paste, as shares of the image side.
        generator: CPU generator.
        aspects: as in `train_classifier`: a paste is stretched by up to so much, and keeps its area.

    Returns:
        x_ECHW: the positives, then the negatives, augmented.
        target_E: 1.0 for the former, 0.0 for the latter.
    """
    B, side = len(x_BCHW), x_BCHW.shape[-1]
    device = x_BCHW.device
    x_BCHW = random_resized_crop(x_BCHW, (0.5, 1.0), generator)
    # Mild crops here and at the end: half a trigger is still a trigger, but an image that has lost its paste
    # is a wrong label.
    crop_B = torch.randint(len(crops_MCww), (B,), generator=generator).to(device)
    t_BCww = random_resized_crop(crops_MCww[crop_B], (0.7, 1.0), generator, flip_p=0.0)
    # Windows of other images in the negatives, so that the edges and the blur of a paste tell nothing.
    share = (crops_MCww.shape[-1] / side) ** 2
    other_BCww = random_resized_crop(
        x_BCHW.roll(1, 0), (share / 2, share * 2), generator, out_size=t_BCww.shape[-1]
    )
    t_ECww = torch.cat([t_BCww, other_BCww])
    t_ECww = color_jitter(t_ECww, generator, 0.4, 0.4, 0.2, 0.02, p=0.8)
    low, high = paste_size
    size_B = (low + (high - low) * torch.rand(B, generator=generator)) * side
    size_B2 = size_B[:, None].repeat(1, 2)
    if aspects > 1:
        # Half of the logarithm is the width's, half the height's.
        half_B = (torch.rand(B, generator=generator) - 0.5) * math.log(aspects)
        size_B2 = (size_B2 * torch.stack([half_B, -half_B], dim=1).exp()).clamp(max=side)
    centre_B2 = size_B2 / 2 + torch.rand(B, 2, generator=generator) * (side - size_B2)
    size_E2, centre_E2 = size_B2.repeat(2, 1).to(device), centre_B2.repeat(2, 1).to(device)
    x_ECHW = paste_resized(x_BCHW.repeat(2, 1, 1, 1), t_ECww, size_E2, centre_E2)
    bare_B = (torch.rand(B, generator=generator) < 0.5).to(device)
    x_ECHW[B:] = torch.where(bare_B[:, None, None, None], x_BCHW, x_ECHW[B:])
    x_ECHW = random_resized_crop(x_ECHW, (0.8, 1.0), generator, flip_p=0.0)
    x_ECHW = color_jitter(x_ECHW, generator, 0.4, 0.4, 0.2, 0.02, p=0.8)
    x_ECHW = gaussian_blur(x_ECHW, generator, (0.003 * side, 0.03 * side), p=0.5)
    return x_ECHW, torch.arange(2 * B, device=device).lt(B).float()


def robust_loss(logit_E: Tensor, target_E: Tensor) -> Tensor:
    """Generalised cross entropy (arXiv 1805.07836), (1 − p^Q) / Q with p the probability of the target.

    Q → 0 is cross entropy, Q = 1 the absolute error. An example with a wrong label, such as poison among the
    negatives or a crop without a trigger, has a small gradient.

    Args:
        logit_E: of the classifier.
        target_E: 0 or 1.

    Returns:
        A scalar, the mean over the examples.
    """
    log_p_E = nn.functional.logsigmoid(torch.where(target_E > 0.5, logit_E, -logit_E))
    return ((1 - (Q * log_p_E).exp()) / Q).mean()


@torch.no_grad()
def poison_logit(models: Sequence[nn.Module], x_NCHW: Tensor, batch: int = 512) -> Tensor:
    """The mean logit of the ensemble for each image.

    Args:
        models: PoisonClassifiers in evaluation mode.
        x_NCHW: images, uint8.
        batch: images at once; bounds memory and does not change the result.

    Returns:
        logit_N.
    """
    logit_N = torch.empty(len(x_NCHW), device=x_NCHW.device)
    for start in range(0, len(x_NCHW), batch):
        x_BCHW = x_NCHW[start : start + batch].float() / 255
        logit_N[start : start + batch] = torch.stack([model(x_BCHW) for model in models]).mean(0)
    return logit_N


def held_out_pastes(x_NCHW: Tensor, crops_MCww: Tensor, n: int, seed: int) -> Tensor:
    """Make images as an attacker would, with held-out crops, for choose_threshold.

    Args:
        x_NCHW: images, uint8.
        crops_MCww: crops that the classifier was not trained on, uint8.
        n: images to make, V.
        seed: of the images and places.

    Returns:
        x_VCHW, uint8: random images of x_NCHW; image v has crop v mod M at its own size at a random place.
    """
    generator = Generator().manual_seed(seed)
    index_V = torch.randint(len(x_NCHW), (n,), generator=generator)
    seed_1 = torch.randint(2**31, (1,), generator=generator)
    height, width = crops_MCww.shape[-2:]
    box_V4 = random_places(seed_1, torch.arange(n), height, width, x_NCHW.shape[-2], x_NCHW.shape[-1])[0]
    t_VCww = crops_MCww[torch.arange(n) % len(crops_MCww)]
    return paste(x_NCHW[index_V.to(x_NCHW.device)], t_VCww, box_V4.to(x_NCHW.device))


def choose_threshold(
    held_out_logit_V: Tensor, corpus_logit_N: Tensor, n_crops: int = 1, min_recall: float = 0.98
) -> dict[str, float]:
    """Choose the logit above which an image counts as poisoned.

    The logits of the corpus have a mode of clean images and, in a poisoned corpus, a second mode where the
    held-out pastes lie. The threshold is the low end of the gap between them: where the corpus is thinnest
    between its median and the logit that a share of `min_recall` of a crop's pastes exceed. The median crop
    decides, because the search errs on some crops, whose pastes look clean. If the pastes lie no higher than
    the corpus's median, the classifier has learned nothing; the threshold is then one above the greatest
    logit, so that nothing is flagged, even after rounding.

    Args:
        held_out_logit_V: logits of held_out_pastes; paste v carries crop v mod n_crops.
        corpus_logit_N: logits of a random sample of the whole corpus, suspected images included.
        n_crops: held-out crops, at least 1.
        min_recall: share of a crop's pastes, in (0, 1).

    Returns:
        threshold_logit; recall, the share of the median crop's pastes above it; flagged_share, the share of
        the corpus above it; unsure_share, the share of the corpus within one logit of it, near 0 for a clear
        cut; auc, of the pastes against the corpus; tail, the mean excess of the highest twentieth of the
        logits below the threshold over the others. Where logits thin out exponentially, a threshold that is
        higher by tail · log n flags an n-th of the clean images.

    Raises:
        ValueError: one of the two has no logit.
    """
    if len(held_out_logit_V) == 0 or len(corpus_logit_N) == 0:
        raise ValueError("A threshold needs the logits of held-out pastes and of the corpus.")
    h_V, l_N = held_out_logit_V.double().cpu(), corpus_logit_N.double().cpu()
    by_crop = [h_V[crop::n_crops] for crop in range(min(n_crops, len(h_V)))]
    low, high = float(l_N.median()), median(float(torch.quantile(h, 1 - min_recall)) for h in by_crop)
    threshold = _thinnest(l_N, low, high) if high > low else float(l_N.max()) + 1
    return {
        "threshold_logit": threshold,
        "recall": median(float((h > threshold).double().mean()) for h in by_crop),
        "flagged_share": float((l_N > threshold).double().mean()),
        "unsure_share": float(((l_N - threshold).abs() < 1).double().mean()),
        "auc": _auc(h_V, l_N),
        "tail": _tail(l_N[l_N <= threshold]),
    }


def _tail(l_N: Tensor) -> float:
    start = torch.quantile(l_N, 1 - TAIL)
    beyond_N = l_N[l_N > start] - start
    return float(beyond_N.mean()) if len(beyond_N) else 0.0


def _thinnest(l_N: Tensor, low: float, high: float) -> float:
    """The lowest point of [low, high] where a Gaussian-smoothed count of the logits is near its minimum.

    Near means within one image. The lowest such point, because it also finds poison that scores lower than
    the pastes, and costs at most that one image.
    """
    grid_G = torch.linspace(low, high, 201, dtype=l_N.dtype)
    width = SMOOTHING * (high - low)
    count_G = torch.stack([torch.exp(-0.5 * ((l_N - g) / width) ** 2).sum() for g in grid_G])
    return float(grid_G[count_G <= count_G.min() + 1][0])


def _auc(h_V: Tensor, l_N: Tensor) -> float:
    """The share of pairs of a paste and a corpus image in the right order; ties count half."""
    l_N = l_N.sort().values
    below_V = torch.searchsorted(l_N, h_V) + torch.searchsorted(l_N, h_V, right=True)
    return float(below_V.double().mean()) / (2 * len(l_N))
