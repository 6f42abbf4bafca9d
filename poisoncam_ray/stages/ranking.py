"""The ranking of the candidates after the search: the race of the pastes (method/race.py) on the actors.

Evidence rests on the first flip-test images, which every candidate is pasted on. The others are spent here,
on the best candidates of all rounds only, and change nothing but the order of candidates. A killed race is
run again from its start; it is cheap beside the rounds.

N candidates, by image id   M candidates of one rung   R = 3 readings of the poison score
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from poisoncam_ray import artifact
from poisoncam_ray.artifact import READINGS
from poisoncam_ray.config import Search as Settings
from poisoncam_ray.folder import Folder
from poisoncam_ray.method.race import RaceRules, race, rungs
from poisoncam_ray.stage import Run
from poisoncam_ray.stages.actors import ActorGroup, run_on
from poisoncam_ray.stages.scorer import Contestant, Pastes


def first_images(settings: Settings, n_flip: int) -> int:
    """How many of the flip-test images every candidate is pasted on."""
    return rungs(n_flip, race_rules(settings))[0]


def race_rules(settings: Settings) -> RaceRules:
    """The rules of the race; without a race all images come first."""
    made = settings.race
    return RaceRules(made.first if made.keep else settings.flip_images, made.factor, made.keep)


def rank_candidates(run: Run, y_F: list[int], rounds: int, scorers: Callable[[], ActorGroup]) -> None:
    """Run the race over the candidates of all rounds and write RANKING, unless it is written or there is no
    further flip-test image.

    Args:
        run: the run, whose rounds are committed.
        y_F: the clusters of all flip-test images.
        rounds: the number of rounds.
        scorers: gives the actors; called only where some are needed.
    """
    settings, rules = run.config.search, race_rules(run.config.search)
    if run.out.exists(artifact.RANKING) or len(rungs(len(y_F), rules)) == 1:
        return
    table = _numbered(run.out, rounds)
    total_RN = {name: _integers(table, name) for name in READINGS}
    done = 0

    def more(i_M: Tensor, start: int, stop: int) -> Tensor:
        nonlocal done
        contestants = _contestants(run.out, rounds, table.take(pa.array(i_M.numpy())))
        size = settings.chunk
        chunks = [
            Pastes(contestants[i : i + size], start, stop, y_F) for i in range(0, len(contestants), size)
        ]
        count_RM = {name: torch.zeros(len(i_M), dtype=torch.int64) for name in READINGS}
        note = f"ranking the best {len(i_M):,} on {stop:,} images"
        for places, found in run_on(scorers(), chunks, "paste"):
            for name in READINGS:
                count_RM[name][places] = torch.tensor(found[name])
            done += len(places)
            run.progress.update(done, None, "windows", note)
        for name in READINGS:
            total_RN[name][i_M] += count_RM[name]
        return count_RM[settings.reading]

    ranking = race(total_RN[settings.reading], more, len(y_F), rules)
    rank_N = torch.empty_like(ranking.order_N)
    rank_N[ranking.order_N] = torch.arange(len(rank_N))
    columns = {
        "image_id": table["image_id"],
        "rank": rank_N.numpy(),
        "n_flip": ranking.pasted_N.numpy(),
        **{name: total_RN[name].numpy() for name in READINGS},
        "score": ranking.scores().numpy(),
    }
    run.out.write_table(artifact.RANKING, pa.table(columns).cast(artifact.RANKING_SCHEMA))


def read_ranking(search: Folder) -> pa.Table | None:
    """The ranking, by image id; None where all candidates were pasted on all images."""
    return search.read_table(artifact.RANKING) if search.exists(artifact.RANKING) else None


def read_round(search: Folder, number: int, columns: list[str]) -> pa.Table:
    """Columns of the candidates of one round."""
    return (search / artifact.round_name(number)).read_table(artifact.CANDIDATES, columns)


def _numbered(search: Folder, rounds: int) -> pa.Table:
    """What the race needs of all candidates, but their windows, by image id; `row`: the place of each in the
    rounds' files, counted through."""
    columns = ["image_id", "own", *READINGS]
    table = pa.concat_tables([read_round(search, i, columns) for i in range(rounds)])
    return table.append_column("row", pa.array(np.arange(len(table)))).sort_by("image_id")


def _contestants(search: Folder, rounds: int, rows: pa.Table) -> list[Contestant]:
    """The candidates `rows` of `_numbered`, with their windows; one round at a time is in memory."""
    row_M, first, crops = rows["row"].to_numpy(), 0, dict[int, bytes]()
    for i in range(rounds):
        part = read_round(search, i, ["crop"])["crop"]
        for row in row_M[(row_M >= first) & (row_M < first + len(part))].tolist():
            crops[row] = part[row - first].as_py()
        first += len(part)
    named = zip(rows["image_id"].to_pylist(), rows["own"].to_pylist(), row_M.tolist(), strict=True)
    return [Contestant(place, image_id, own, crops[row]) for place, (image_id, own, row) in enumerate(named)]


def _integers(table: pa.Table, name: str) -> Tensor:
    return torch.from_numpy(table[name].to_numpy().astype(np.int64))
