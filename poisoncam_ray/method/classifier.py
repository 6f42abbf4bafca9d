"""Where to cut the poison classifier's logits, from data that the defence has.

h  logits of held-out pastes, V of them        G  points of the search grid
l  logits of the corpus, N of them

The poison classifier: finds in every image what the search found in a few (PoisonCAM, arXiv 2312.07955).

x        images, uint8 or float in [0, 1]      B, N, V  images in a batch, in a corpus, held out
t, crops candidate triggers cut out by the     M        crops
         search, uint8                         w        a crop's side in pixels
C, H, W  channels, height, width               E        twice B: a batch's positives and negatives
"""

from collections.abc import Sequence
from statistics import median

import torch
from torch import Generator, Tensor, nn

from poisoncam_ray.method.augment import color_jitter, gaussian_blur, random_resized_crop
from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.geometry import paste, paste_resized, random_places

# --- threshold ---

# A twentieth of the searched range smooths single images away and still resolves the gap between two modes.
SMOOTHING = 0.05


def choose_threshold(
    held_out_logit_V: Tensor, corpus_logit_N: Tensor, n_crops: int = 1, least_recall: float = 0.98
) -> dict[str, float]:
    """Above which logit an image counts as poisoned, and what speaks for it.

    The corpus's own logits have a mode of clean images and, if it is poisoned, one of poisoned images where
    the held-out pastes lie. The threshold is the low end of the gap between them: where the corpus is
    thinnest from its median to the logit that `least_recall` of a held-out crop's pastes exceed. Of `n_crops`
    held-out crops (paste v carries crop v mod n_crops) the median one sets that logit: the search errs on
    some crops, and those look clean. Pastes no higher than the corpus's median mean a classifier that
    learned nothing: it shall flag nothing, also when rounding moves a logit. corpus_logit_N: a random sample
    of the whole corpus; without its suspicious images their mode is missing.

    Facts: threshold_logit; recall, share of the median crop's pastes above the threshold; flagged_share of
    the corpus above it; unsure_share of the corpus within one logit of it (near 0 where the cut is clear);
    auc of pastes against the corpus. Raises ValueError without logits of both kinds.
    """
    if len(held_out_logit_V) == 0 or len(corpus_logit_N) == 0:
        raise ValueError("A threshold needs the logits of held-out pastes and of the corpus.")
    h_V, l_N = held_out_logit_V.double().cpu(), corpus_logit_N.double().cpu()
    by_crop = [h_V[crop::n_crops] for crop in range(min(n_crops, len(h_V)))]
    low, high = float(l_N.median()), median(float(torch.quantile(h, 1 - least_recall)) for h in by_crop)
    threshold = _thinnest(l_N, low, high) if high > low else float(l_N.max()) + 1
    return {
        "threshold_logit": threshold,
        "recall": median(float((h > threshold).double().mean()) for h in by_crop),
        "flagged_share": float((l_N > threshold).double().mean()),
        "unsure_share": float(((l_N - threshold).abs() < 1).double().mean()),
        "auc": _auc(h_V, l_N),
    }


def _thinnest(l_N: Tensor, low: float, high: float) -> float:
    """The least point of [low, high] where a Gaussian-smoothed count of l is within one image of its minimum.

    The low end of the gap, for its cost is bounded by that image and poison that looks weaker than the
    pastes is still found: in ten measured ensembles this raised the lowest recall and cost 0.01 % of the
    clean images.
    """
    grid_G = torch.linspace(low, high, 201, dtype=l_N.dtype)
    width = SMOOTHING * (high - low)
    count_G = torch.stack([torch.exp(-0.5 * ((l_N - g) / width) ** 2).sum() for g in grid_G])
    return float(grid_G[count_G <= count_G.min() + 1][0])


def _auc(h_V: Tensor, l_N: Tensor) -> float:
    """Share of (paste, corpus image) pairs in the right order, ties counting half."""
    l_N = l_N.sort().values
    below_V = torch.searchsorted(l_N, h_V) + torch.searchsorted(l_N, h_V, right=True)
    return float(below_V.double().mean()) / (2 * len(l_N))


# --- classifier ---

# The paper pastes at 20 to 80 of 224 pixels.
PASTE_SIZE = (20 / 224, 80 / 224)
# Generalised cross entropy (Zhang & Sabuncu, arXiv 1805.07836): 0 is cross entropy, 1 the absolute error.
Q = 0.7


class PoisonClassifier(nn.Module):
    """A residual network of four basic blocks and one logit: logit_B, above 0 for poison."""

    def __init__(self, image_size: int):
        super().__init__()
        self.encoder = build_encoder("resnet_tiny", image_size)
        self.head = nn.Linear(self.encoder.dim, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.head(self.encoder(x_BCHW))[:, 0]


def make_training_batch(
    x_BCHW: Tensor, crops_MCww: Tensor, paste_size: tuple[float, float], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Both faces of every image: x_ECHW with the first B carrying a crop, and their target_E of 1 and 0."""
    B, side = len(x_BCHW), x_BCHW.shape[-1]
    device = x_BCHW.device
    x_BCHW = random_resized_crop(x_BCHW, (0.5, 1.0), generator)
    # Cut mildly here and at the end: half a trigger is still one, an image that lost its paste a wrong label.
    crop_B = torch.randint(len(crops_MCww), (B,), generator=generator).to(device)
    t_BCww = random_resized_crop(crops_MCww[crop_B], (0.7, 1.0), generator, flip_p=0.0)
    # A negative carries a window of another photograph: the paste's own edges and blur tell nothing then.
    share = (crops_MCww.shape[-1] / side) ** 2
    other_BCww = random_resized_crop(
        x_BCHW.roll(1, 0), (share / 2, share * 2), generator, out_size=t_BCww.shape[-1]
    )
    t_ECww = torch.cat([t_BCww, other_BCww])
    t_ECww = color_jitter(t_ECww, generator, 0.4, 0.4, 0.2, 0.02, p=0.8)
    low, high = paste_size
    size_B = (low + (high - low) * torch.rand(B, generator=generator)) * side
    centre_B2 = size_B[:, None] / 2 + torch.rand(B, 2, generator=generator) * (side - size_B[:, None])
    size_E, centre_E2 = size_B.repeat(2).to(device), centre_B2.repeat(2, 1).to(device)
    x_ECHW = paste_resized(x_BCHW.repeat(2, 1, 1, 1), t_ECww, size_E, centre_E2)
    bare_B = (torch.rand(B, generator=generator) < 0.5).to(device)
    x_ECHW[B:] = torch.where(bare_B[:, None, None, None], x_BCHW, x_ECHW[B:])
    x_ECHW = random_resized_crop(x_ECHW, (0.8, 1.0), generator, flip_p=0.0)
    x_ECHW = color_jitter(x_ECHW, generator, 0.4, 0.4, 0.2, 0.02, p=0.8)
    x_ECHW = gaussian_blur(x_ECHW, generator, (0.003 * side, 0.03 * side), p=0.5)
    return x_ECHW, torch.arange(2 * B, device=device).lt(B).float()


def train_classifier(
    x_NCHW: Tensor,
    crops_MCww: Tensor,
    seed: int,
    steps: int = 150,
    batch: int = 32,
    learning_rate: float = 2e-3,
    paste_size: tuple[float, float] = PASTE_SIZE,
) -> PoisonClassifier:
    """One member of the ensemble, in evaluation mode; the same arguments give the same weights.

    x_NCHW: uint8, a sample of the corpus without the images that the search found poisonous. What poison is
    left in it is met by a loss that gives up on examples it cannot fit. crops_MCww: uint8, the best
    candidates. batch: photographs a step, each seen with and without a crop. paste_size: the smallest and
    the largest side of a paste as shares of the image's; a paste of few pixels shows nothing, so images of
    32 to 64 px do better from 0.18.
    Raises ValueError when there are no images or no crops.
    """
    if len(x_NCHW) == 0 or len(crops_MCww) == 0:
        raise ValueError("The poison classifier needs at least one image and one crop to learn from.")
    device = x_NCHW.device
    generator = Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PoisonClassifier(x_NCHW.shape[-1]).to(device)
    # A quarter less time a step on a CPU, and what tensor cores want.
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    crops_MCww = crops_MCww.float() / 255
    model.train()
    for _ in range(steps):
        index_B = torch.randint(len(x_NCHW), (batch,), generator=generator).to(device)
        x_ECHW, target_E = make_training_batch(
            x_NCHW[index_B].float() / 255, crops_MCww, paste_size, generator
        )
        optimizer.zero_grad(set_to_none=True)
        robust_loss(model(x_ECHW), target_E).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def robust_loss(logit_E: Tensor, target_E: Tensor) -> Tensor:
    """Generalised cross entropy, (1 − p^Q) / Q with p the probability of the target: an example that
    contradicts what all others say (unknown poison among the negatives, a wrong crop) has little pull."""
    log_p_E = nn.functional.logsigmoid(torch.where(target_E > 0.5, logit_E, -logit_E))
    return ((1 - (Q * log_p_E).exp()) / Q).mean()


@torch.no_grad()
def poison_logit(models: Sequence[nn.Module], x_NCHW: Tensor, batch: int = 512) -> Tensor:
    """The ensemble's mean logit_N for uint8 images; `batch` bounds memory and changes nothing else."""
    logit_N = torch.empty(len(x_NCHW), device=x_NCHW.device)
    for start in range(0, len(x_NCHW), batch):
        x_BCHW = x_NCHW[start : start + batch].float() / 255
        logit_N[start : start + batch] = torch.stack([model(x_BCHW) for model in models]).mean(0)
    return logit_N


def held_out_pastes(x_NCHW: Tensor, crops_MCww: Tensor, n: int, seed: int) -> Tensor:
    """Images as an attacker would leave them, for choose_threshold: x_VCHW uint8, held-out crop v mod M
    pasted at its own size at a random place of image v of a random sample of n."""
    generator = Generator().manual_seed(seed)
    index_V = torch.randint(len(x_NCHW), (n,), generator=generator)
    seed_1 = torch.randint(2**31, (1,), generator=generator)
    height, width = crops_MCww.shape[-2:]
    box_V4 = random_places(seed_1, torch.arange(n), height, width, x_NCHW.shape[-2], x_NCHW.shape[-1])[0]
    t_VCww = crops_MCww[torch.arange(n) % len(crops_MCww)]
    return paste(x_NCHW[index_V.to(x_NCHW.device)], t_VCww, box_V4.to(x_NCHW.device))
