"""A program of its own: an actor with a large argument, whose node leaves while its group exists.

Prints "moved" when it works on the next node.
"""

import time

import numpy as np
import ray
from ray.cluster_utils import Cluster

from poisoncam_ray.stages.actors import ActorGroup, run_on

NUMBERS = 20 * 2**20


class Adder:
    def __init__(self, large: np.ndarray) -> None:
        self.large = large

    @ray.method(max_task_retries=-1)
    def ready(self) -> None:
        pass

    def work(self, chunk: int) -> int:
        return chunk + len(self.large)


def main() -> None:
    cluster = Cluster()
    cluster.add_node(num_cpus=0)
    ray.init(address=cluster.address)
    node = cluster.add_node(num_cpus=1)
    adder = ray.remote(Adder).options(num_cpus=1, max_restarts=5)
    group = ActorGroup.start(adder, 1, np.zeros(NUMBERS, np.uint8))
    assert list(run_on(group, [1])) == [1 + NUMBERS]
    # Long enough for Ray to release an object without a reference.
    time.sleep(3)
    cluster.add_node(num_cpus=1)
    cluster.remove_node(node, allow_graceful=True)
    assert list(run_on(group, [2])) == [2 + NUMBERS]
    print("moved")


if __name__ == "__main__":
    main()
