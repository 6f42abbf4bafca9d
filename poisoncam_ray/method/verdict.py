"""The verdict: is there poison in the corpus, and which candidate windows are triggers?

The search leaves thousands of candidate windows, most of them benign. Candidates are put into window groups,
each group gets a score, and a group is a suspect when it scores higher than a null distribution fitted to all
other groups allows. The suspects' windows are then joined into trigger families, normally one per attacker.
`decide` is the whole algorithm; the helpers below stand in the order in which it calls them.

N candidates, best first   M candidates of one group   P pairs   U window groups   S suspected windows
F flip-test images   K clusters   C channels   s a thumbnail's side   L patterns (groups of look-alikes)

Window groups are numbered from 0: first the `n_super` superclusters, then the patterns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor

from poisoncam_ray.method.null import Null
from poisoncam_ray.method.similarity import gradient_ncc, shifted_ncc

AT_ONCE = 4096
"""Candidates compared or counted at once: bounds memory, changes no result."""


@dataclass(frozen=True)
class VerdictRules:
    """Every constant of the verdict. The Verdict stage's fingerprint holds them all."""

    # Window groups
    thumbnail_side: int = 12  # pixels; windows are compared as thumbnails of this side
    max_shift: int = 3  # thumbnail pixels; windows of one trigger lie up to a quarter of their side apart
    min_pattern_ncc: float = 0.85  # correlation from which two windows show the same pattern
    min_pattern_windows: int = 8  # look-alikes that make a pattern, the first window included
    max_pattern_search: int = 4096  # best windows among which patterns are looked for: cost is quadratic
    # Near-duplicates
    min_duplicate_ncc: float = 0.75  # median correlation of gradients between cuts of the same picture
    min_duplicate_clusters: int = 5  # a photo series also repeats a picture, but lies in few clusters
    max_duplicate_windows: int = 64  # best windows of a pattern, of which all pairs are compared
    near_duplicate_weight: float = 3.0  # near-duplicates from many places are rare in nature
    # Group scores and the null
    min_group_windows: int = 8  # groups with fewer windows are not scored
    n_standard_errors: float = 2.0  # a group's score is its mean gain minus this many standard errors
    min_null_groups: int = 5  # fewer benign groups do not show how much benign groups differ
    max_suspect_share: float = 0.5  # at most this share of the groups may be suspects: the rest are the null
    scale_inflation: float = 2.0  # the fitted scale is (1 + this / √n) times the sample's, for n groups
    min_scale: float = 0.25  # the least scale, in steps of one flip-test image
    min_step: float = 0.01  # the least step, where the flip test has more than 100 images
    # Trigger families
    max_family_windows: int = 2000  # suspected windows joined into families, about; of more the best
    min_family_ncc: float = 0.6  # correlation from which two suspected windows belong to one family
    min_family_windows: int = 2  # a family of one window is none
    min_lookalikes: int = 3  # smaller families by look dissolve and are joined by effect
    min_effect_cosine: float = 0.5  # between a single window's effect and a family's mean effect
    min_merge_cosine: float = 0.7  # between the mean effects of two families that are one trigger
    max_kept: int = 200  # windows kept as triggers: of each family, and of the best whatever they are


@dataclass(frozen=True)
class Candidates:
    """What the search found out about every candidate window, the best first by their scores over the images
    that the evidence rests on, ties by image id.

    Attributes:
        cluster_N: int64, the cluster of the window's own image.
        score_N: float64, 0 … 1, the poison score over all images that the window was pasted on.
        flips_N: bool, whether the image leaves its cluster when its window is occluded.
        landed_NF: integer, the cluster of each flip-test image with the window pasted.
        thumbnail_NCss: float in [0, 1], the windows as thumbnails.
        y_F: int64, the cluster of each flip-test image as it is.
        supercluster_K: int64, the supercluster of each cluster.
        ranking_N: int64, the candidates from the best down by more flip-test images than the evidence rests
            on, which only the best were pasted on; None: by score.
    """

    cluster_N: Tensor
    score_N: Tensor
    flips_N: Tensor
    landed_NF: Tensor
    thumbnail_NCss: Tensor
    y_F: Tensor
    supercluster_K: Tensor
    ranking_N: Tensor | None = None

    @property
    def order_N(self) -> Tensor:  # noqa: N802
        """The candidates, the best first: orders what the verdict finds. Evidence does not depend on it."""
        by_score_N = self.score_N.cpu().argsort(descending=True, stable=True)
        return by_score_N if self.ranking_N is None else self.ranking_N

    @property
    def evidence_order_N(self) -> Tensor:  # noqa: N802
        """The candidates, the best first by the images that the evidence rests on."""
        return self.order_N if self.ranking_N is None else torch.arange(len(self.score_N))

    @property
    def step(self) -> float:
        """The least difference between two shares of the flip-test images: one image."""
        return 1 / max(1, len(self.y_F))


@dataclass(frozen=True)
class Decision:
    """What the verdict rests on.

    Attributes:
        suspects: group scores, the null and the threshold.
        group_N: int64, the window group of each candidate.
        family_N: int64, the trigger family of each, from 1; 0 for none. Any family means poison.
        kept_M: int64, the candidates that are kept as triggers, best first.
    """

    suspects: Suspects
    group_N: Tensor
    family_N: Tensor
    kept_M: Tensor


def decide(tried: Candidates, false_alarm_rate: float, rules: VerdictRules) -> Decision:
    """Decide whether the corpus holds poison, and which candidates are its triggers.

    Args:
        tried: all candidates that the search scored.
        false_alarm_rate: in (0, 1), the nominal chance that a clean corpus is called poisoned. At 1 no
            evidence is asked for: all candidates are one family, as in the paper, which always finds poison.
        rules: the constants.
    """
    asked = false_alarm_rate < 1
    super_N = tried.supercluster_K[tried.cluster_N]
    n_super = int(super_N.max()) + 1
    group_N = window_groups(tried.thumbnail_NCss, super_N, rules) if asked else super_N
    member_UK = member_clusters(group_N, tried.cluster_N, len(tried.supercluster_K))
    gain_N = flip_gains(tried, group_N, member_UK, n_super)
    weight_U = concentration(tried.cluster_N, group_N, member_UK, n_super)
    if asked:
        duplicate_U = near_duplicates(tried.thumbnail_NCss, group_N, member_UK, n_super, rules)
        weight_U[duplicate_U] *= rules.near_duplicate_weight
    suspects = find_suspects(gain_N, tried.flips_N, group_N, weight_U, false_alarm_rate, tried.step, rules)
    family_N = torch.ones_like(group_N)
    if asked:
        family_N = trigger_families(tried, suspects.suspect_N, group_N, super_N, rules)
    return Decision(suspects, group_N, family_N, _kept(family_N, tried.order_N, rules.max_kept))


def window_groups(thumbnail_NCss: Tensor, super_N: Tensor, rules: VerdictRules) -> Tensor:
    """Group the windows that look alike; what looks like nothing else stays with its supercluster.

    Windows of one trigger look alike wherever their images lie in feature space. A trigger that changes from
    image to image still fills a region, which its supercluster covers.
    """
    group_N = super_N.to(torch.int64, copy=True)
    pattern_L = find_patterns(thumbnail_NCss[: rules.max_pattern_search], rules)
    if len(pattern_L):
        first = int(super_N.max()) + 1
        for i_M in torch.arange(len(thumbnail_NCss)).split(AT_ONCE):
            ncc_ML = shifted_ncc(thumbnail_NCss[i_M], thumbnail_NCss[pattern_L], rules.max_shift)
            best_M, nearest_M = ncc_ML.max(dim=1)
            group_N[i_M] = torch.where(best_M >= rules.min_pattern_ncc, first + nearest_M, group_N[i_M])
    return group_N


def find_patterns(thumbnail_NCss: Tensor, rules: VerdictRules) -> Tensor:
    """pattern_L, int64: the windows that many others look like, the one with most look-alikes first."""
    alike_NN = shifted_ncc(thumbnail_NCss, thumbnail_NCss, rules.max_shift) >= rules.min_pattern_ncc
    alike_NN.fill_diagonal_(True)
    free_N = torch.ones(len(alike_NN), dtype=torch.bool)
    found: list[int] = []
    while bool(free_N.any()):
        size_N = (alike_NN & free_N).sum(dim=1) * free_N
        central = int(size_N.argmax())
        if size_N[central] < rules.min_pattern_windows:
            break
        free_N &= ~alike_NN[central]
        found.append(central)
    return torch.tensor(found, dtype=torch.int64)


def member_clusters(group_N: Tensor, cluster_N: Tensor, n_clusters: int) -> Tensor:
    """member_UK, bool: the clusters that hold the images of each group's windows."""
    member_UK = torch.zeros(int(group_N.max()) + 1, n_clusters, dtype=torch.bool)
    member_UK[group_N, cluster_N] = True
    return member_UK


def flip_gains(tried: Candidates, group_N: Tensor, member_UK: Tensor, n_super: int) -> Tensor:
    """The share of the flip-test images that each window moves into its group's member clusters.

    Member clusters of a supercluster that a stronger pattern explains are left out first: natural images
    among the poison also move images into the poison's clusters, only fewer.

    Returns:
        gain_N, float64, 0 … 1: images moved in minus images moved out, at least 0.
    """
    arrived_UK = torch.zeros(member_UK.shape)
    for i_M in torch.arange(len(group_N)).split(AT_ONCE):
        change_MK = _changes(tried.landed_NF[i_M], tried.y_F, member_UK.shape[1])
        arrived_UK.index_add_(0, group_N[i_M], change_MK * tried.flips_N[i_M][:, None])
    counted_UK = _unexplained(member_UK, arrived_UK, torch.bincount(group_N), n_super)
    gain_N = torch.zeros(len(group_N), dtype=torch.float64)
    for i_M in torch.arange(len(group_N)).split(AT_ONCE):
        change_MK = _changes(tried.landed_NF[i_M], tried.y_F, member_UK.shape[1])
        # Whole numbers: their sum is exact.
        gain_N[i_M] = (change_MK * counted_UK[group_N[i_M]]).sum(dim=1).double()
    return gain_N.clamp(min=0) * tried.step


def _changes(landed_NF: Tensor, y_F: Tensor, n_clusters: int) -> Tensor:
    """change_NK: how many more flip-test images lie in each cluster with the window than without."""
    after_NK = torch.zeros(len(landed_NF), n_clusters)
    after_NK.scatter_add_(1, landed_NF.cpu().long(), torch.ones(landed_NF.shape))
    return after_NK - torch.bincount(y_F.cpu(), minlength=n_clusters)


def _unexplained(member_UK: Tensor, arrived_UK: Tensor, n_U: Tensor, n_super: int) -> Tensor:
    """member_UK without the clusters of a supercluster that some pattern gains more images in, if the pattern
    also gains more in all."""
    mean_UK = arrived_UK / n_U.clamp(min=1)[:, None]
    total_U = (mean_UK * member_UK).sum(dim=1)
    left_UK = member_UK.clone()
    for pattern in range(n_super, len(member_UK)):
        weaker_U = total_U[:n_super] < total_U[pattern]
        into_K = member_UK[pattern] & (mean_UK[pattern] > 0)
        left_UK[:n_super] &= ~(into_K & (mean_UK[pattern] >= mean_UK[:n_super]) & weaker_U[:, None])
    return left_UK


def concentration(cluster_N: Tensor, group_N: Tensor, member_UK: Tensor, n_super: int) -> Tensor:
    """How far a pattern's windows lie in fewer clusters than as many windows drawn from all candidates.

    Plain windows (sky, black) also look alike and gain images, but they are cut from everywhere.

    Returns:
        weight_U, float64: 0 for as many clusters as by chance or more, 1 for half as many or fewer; 1 for
        superclusters.
    """
    n_U, tried_K = torch.bincount(group_N), torch.bincount(cluster_N, minlength=member_UK.shape[1])
    n_windows = tried_K.sum().double()
    pattern_UK, n_U1 = member_UK[n_super:], n_U[n_super:, None].double()
    others_K = n_windows - tried_K
    # The chance that a draw of n windows misses a cluster is C(others, n) / C(all, n).
    log_UK = (others_K + 1).lgamma() + (n_windows - n_U1 + 1).lgamma() - (n_windows + 1).lgamma()
    left_UK = others_K - n_U1
    missed_UK = torch.where(left_UK < 0, 0.0, (log_UK - (left_UK.clamp(min=0) + 1).lgamma()).exp())
    by_chance_U = (1 - missed_UK).sum(dim=1)
    weight_U = (by_chance_U / pattern_UK.sum(dim=1).clamp(min=1) - 1).clamp(0, 1)
    return torch.cat([torch.ones(n_super, dtype=torch.float64), weight_U])


def near_duplicates(
    thumbnail_NCss: Tensor, group_N: Tensor, member_UK: Tensor, n_super: int, rules: VerdictRules
) -> Tensor:
    """duplicate_U, bool: patterns that show one picture in several clusters, as a pasted trigger does."""
    found_U = member_UK.sum(dim=1) >= rules.min_duplicate_clusters
    found_U[:n_super] = False
    for group in found_U.nonzero()[:, 0].tolist():
        best_MCss = thumbnail_NCss[group_N == group][: rules.max_duplicate_windows]
        found_U[group] = gradient_ncc(best_MCss, rules.max_shift) >= rules.min_duplicate_ncc
    return found_U


@dataclass(frozen=True)
class Suspects:
    """What `find_suspects` returns.

    Attributes:
        null: the fitted null; None where too few groups are left for it, or no evidence is asked for.
        threshold: the score from which a group is a suspect; ∞ without a null, 0 where none is asked for.
        score_U: the weighted score of each scored group, by its number.
        suspect_N: bool, the windows that contribute to suspected groups.
        null_U: the unweighted scores that the null was fitted to.
    """

    null: Null | None
    threshold: float
    score_U: dict[int, float]
    suspect_N: Tensor
    null_U: dict[int, float]


def find_suspects(
    gain_N: Tensor,
    flips_N: Tensor,
    group_N: Tensor,
    weight_U: Tensor,
    false_alarm_rate: float,
    step: float,
    rules: VerdictRules,
) -> Suspects:
    """Find the window groups that score higher than benign groups do.

    The m-th best group must reach the threshold that the groups after it set; the largest such m counts, so
    several attackers do not hide one another. Groups are compared rather than windows, because windows of one
    group are no independent draws. A group is tested with its weighted score, and is part of the null with
    its plain one.

    Args:
        gain_N: the flip gain of each window, 0 … 1.
        flips_N: whether the window's image flips when occluded; the gain of other windows counts 0.
        group_N: the window group of each window.
        weight_U: the weight of each group.
        false_alarm_rate: as in `decide`.
        step: the least difference between two gains, one flip-test image.
        rules: the constants.
    """
    gain_N = torch.where(flips_N.cpu(), gain_N.double().cpu(), 0.0)
    scored = {u: group_score(gain_N[group_N == u], rules) for u in group_N.unique().tolist()}
    plain_U = {u: score for u, score in scored.items() if score is not None}
    score_U = {u: min(1.0, score * float(weight_U[u])) for u, score in plain_U.items()}
    if false_alarm_rate >= 1:
        return Suspects(None, 0.0, score_U, torch.ones(len(gain_N), dtype=torch.bool), {})
    ranked = sorted(score_U, key=lambda u: (-score_U[u], u))
    found = Suspects(None, math.inf, score_U, _contributing(gain_N, group_N, []), {})
    for m in range(1, max(1, math.floor(rules.max_suspect_share * len(ranked))) + 1):
        null_U = {u: plain_U[u] for u in ranked[m:]}
        null = fit_null(list(null_U.values()), step, rules)
        if null is None:
            break
        threshold = null.threshold(false_alarm_rate, len(ranked))
        stands_out = score_U[ranked[m - 1]] >= threshold
        if stands_out or m == 1:
            suspect_N = _contributing(gain_N, group_N, ranked[:m] if stands_out else [])
            found = Suspects(null, threshold, score_U, suspect_N, null_U)
    return found


def group_score(gain_M: Tensor, rules: VerdictRules) -> float | None:
    """A lower bound of the group's mean gain, at least 0; None for a group with too few windows.

    A natural region has a few windows that gain images; a trigger is in most windows of its group.
    """
    n = len(gain_M)
    if n < rules.min_group_windows:
        return None
    return max(0.0, float(gain_M.mean() - rules.n_standard_errors * gain_M.std() / math.sqrt(n)))


def fit_null(score_U: list[float], step: float, rules: VerdictRules) -> Null | None:
    """Fit the null by moments; None for too few groups."""
    n = len(score_U)
    if n < rules.min_null_groups:
        return None
    # Most benign groups score next to nothing. The least scale keeps the others from being outliers.
    least = rules.min_scale * max(step, rules.min_step)
    inflation = 1 + rules.scale_inflation / math.sqrt(n)
    scale = max(least, stdev(score_U) * math.sqrt(6) / math.pi) * inflation
    # The mean of a Gumbel distribution lies Euler's constant times the scale above its mode.
    return Null(fmean(score_U) - 0.5772156649 * scale, scale, n)


def _contributing(gain_N: Tensor, group_N: Tensor, suspected: list[int]) -> Tensor:
    """suspect_N: of each suspected group the windows that gain at least the group's mean. A supercluster also
    holds natural images beside the poison."""
    suspect_N = torch.zeros(len(gain_N), dtype=torch.bool)
    for group in suspected:
        own_N = group_N == group
        # Where all gain the same, rounding may lift their mean above them.
        suspect_N |= own_N & (gain_N > 0) & (gain_N >= gain_N[own_N].mean() - 1e-9)
    return suspect_N


def trigger_families(
    tried: Candidates, suspect_N: Tensor, group_N: Tensor, super_N: Tensor, rules: VerdictRules
) -> Tensor:
    """Join the suspected windows into trigger families.

    From the best window down, each that is left starts a family of all that look like it. Families that were
    mostly suspected by their pattern stay apart. The others join the family with the same mean effect, if
    there is one: a trigger whose look changes. Small families dissolve, and their windows join by effect.

    Returns:
        family_N, int64: from 1, by falling best score; 0 for windows of no family.
    """
    family_N = torch.zeros(len(group_N), dtype=torch.int64)
    i_S = _best_suspects(suspect_N, group_N, tried.order_N, rules.max_family_windows)
    if not len(i_S):
        return family_N
    n_clusters = len(tried.supercluster_K)
    effect_SK = F.normalize(_changes(tried.landed_NF[i_S], tried.y_F, n_clusters).clamp(min=0), dim=1)
    by_pattern_S = group_N[i_S] != super_N[i_S]
    # The ranking numbers the families, but makes and ends none.
    order = tried.evidence_order_N.argsort()[i_S].argsort().tolist()
    by_look = _lookalikes(tried.thumbnail_NCss[i_S], order, rules)
    large = [group for group in by_look if len(group) >= rules.min_lookalikes]
    found = [group for group in large if by_pattern_S[group].double().mean() > 0.5]
    others = [group for group in large if group not in found]
    alone = {i for group in by_look if group not in large for i in group}
    sums = [effect_SK[group].sum(dim=0) for group in found]
    for group in others:
        _join(group, effect_SK, found, sums, rules.min_merge_cosine)
    for i in (i for i in order if i in alone):
        _join([i], effect_SK, found, sums, rules.min_effect_cosine)
    place = tried.order_N.argsort()[i_S].tolist()
    families = [group for group in found if len(group) >= rules.min_family_windows]
    families.sort(key=lambda group: min(place[i] for i in group))
    for number, group in enumerate(families, start=1):
        family_N[i_S[group]] = number
    return family_N


def _best_suspects(suspect_N: Tensor, group_N: Tensor, order_N: Tensor, most: int) -> Tensor:
    """i_S: all suspects, or of each group the best. A strong attacker must leave room for a weaker one."""
    i_S = order_N[suspect_N[order_N]]
    if len(i_S) <= most:
        return i_S.sort().values
    groups_U = group_N[i_S].unique()
    share = max(1, most // len(groups_U))
    return torch.cat([i_S[group_N[i_S] == group][:share] for group in groups_U]).sort().values


def _lookalikes(thumbnail_SCss: Tensor, order: list[int], rules: VerdictRules) -> list[list[int]]:
    """Windows that look alike, the largest group first, each in the given order."""
    alike_SS = shifted_ncc(thumbnail_SCss, thumbnail_SCss, rules.max_shift) >= rules.min_family_ncc
    groups: list[list[int]] = []
    free_S = torch.ones(len(order), dtype=torch.bool)
    for i in order:
        if free_S[i]:
            alike_S = alike_SS[i] & free_S
            alike_S[i] = True
            free_S &= ~alike_S
            groups.append([j for j in order if alike_S[j]])
    return sorted(groups, key=len, reverse=True)


def _join(
    group: list[int], effect_SK: Tensor, found: list[list[int]], sums: list[Tensor], least: float
) -> None:
    """Add the windows to the family with the nearest mean effect, or start a family where no cosine is at
    least `least`. `sums` holds the summed effects of each family."""
    total_K = effect_SK[group].sum(dim=0)
    cosines = [float(F.cosine_similarity(total_K, other_K, dim=0)) for other_K in sums]
    nearest = max(range(len(sums)), key=cosines.__getitem__, default=None)
    if nearest is None or cosines[nearest] < least:
        found.append(group)
        sums.append(total_K)
    else:
        found[nearest] = found[nearest] + group
        sums[nearest] = sums[nearest] + total_K


def _kept(family_N: Tensor, order_N: Tensor, most: int) -> Tensor:
    """kept_M: the `most` best candidates, and as many of each family, best first."""
    ranked_N = family_N[order_N]
    best = [torch.arange(min(most, len(family_N)))]
    best += [(ranked_N == f).nonzero()[:most, 0] for f in range(1, int(family_N.max()) + 1)]
    return order_N[torch.cat(best).unique(sorted=True)]
