"""While Pretrain trains, its readers get CPUs on every shipped overlay with GPUs. Nothing is started here:
the nodes are those of the manifests, and Ray's own code divides them."""

from __future__ import annotations

import pytest
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import ResourceRequestPriority
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor

from poisoncam_ray.config import Config
from poisoncam_ray.stages.batches import LEAST_IN_FLIGHT, most_in_flight
from tests.infra.render import OVERLAYS, ray_cluster, ray_job, ray_pods, render
from tests.infra.rules import chosen_config, logical

Nodes = list[dict[str, float]]


def nodes_of(overlay: str) -> tuple[Nodes, Config]:
    """The worker nodes of an overlay, as Ray counts them, and the configuration of its job."""
    manifests = render(overlay)
    (group,) = ray_cluster(manifests)["workerGroupSpecs"]
    (pod,) = [pod for pod in ray_pods(manifests) if pod.role == "worker"]
    store = float(group["rayStartParams"]["object-store-memory"])
    node = logical(pod) | {"object_store_memory": store}
    return [node] * group["maxReplicas"], chosen_config(ray_job(manifests)["spec"]["entrypoint"])


WITH_GPUS = [overlay for overlay in OVERLAYS if nodes_of(overlay)[1].resources.gpus_per_actor > 0]


def cpus_of_executions(nodes: Nodes, config: Config) -> list[float]:
    """The CPUs that Ray reserves for each rank, were each to run a Ray Data execution beside Ray Train."""
    coordinator = _AutoscalingCoordinatorActor(
        get_current_time=lambda: 0.0,
        send_resources_request=lambda bundles, label_selectors=None: None,
        get_cluster_nodes=lambda: [
            {"NodeID": str(i), "Alive": True, "Resources": node} for i, node in enumerate(nodes)
        ],
    )
    workers, resources = config.pretrain.workers, config.resources
    coordinator.request_resources(
        "train",
        [{"CPU": resources.cpus_per_actor, "GPU": 1}] * workers,
        60,
        priority=ResourceRequestPriority.HIGH,
    )
    ranks = [f"rank {rank}" for rank in range(workers)]
    for rank in ranks:
        coordinator.request_resources(rank, [], 60, request_remaining=["CPU", "GPU", "object_store_memory"])
    reserved = [coordinator.get_reserved_resources(rank) for rank in ranks]
    return [sum(node.get("CPU", 0) for node in of.values()) for of in reserved]


def test_there_are_overlays_with_gpus():
    assert len(WITH_GPUS) >= 3


@pytest.mark.parametrize("overlay", WITH_GPUS)
def test_every_rank_has_readers_and_they_fit_beside_train(overlay):
    nodes, config = nodes_of(overlay)
    total = {name: sum(node[name] for node in nodes) for name in nodes[0]}
    workers, resources = config.pretrain.workers, config.resources
    each = most_in_flight(config, workers, config.corpus.rows_per_slice, total)
    assert each > LEAST_IN_FLIGHT
    free = total["CPU"] - workers * resources.cpus_per_actor
    assert workers * each * resources.cpus_per_reader <= free
    # Every CPU that Train leaves on a node can hold a reader.
    assert all((node["CPU"] - resources.cpus_per_actor) % resources.cpus_per_reader == 0 for node in nodes)


@pytest.mark.parametrize("overlay", WITH_GPUS)
def test_as_ray_data_executions_the_readers_would_get_none(overlay):
    """Why Pretrain reads by plain tasks. It may go when Ray shares out what a division leaves over."""
    nodes, config = nodes_of(overlay)
    assert cpus_of_executions(nodes, config) == [0] * config.pretrain.workers
    # With room for all, each would have some.
    assert all(cpus_of_executions([node | {"CPU": 20.0} for node in nodes], config))
