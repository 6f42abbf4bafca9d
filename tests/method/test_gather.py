"""Several workers learn what one worker would learn from their joined batch."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from poisoncam_ray.method.encoder import build_encoder
from poisoncam_ray.method.ssl import OBJECTIVES, Objective, gather_rows

WORLD = 2


def model_of(name: str) -> Objective:
    # At rest, batch normalisation does not see the batch: what is left is how the images are compared.
    torch.manual_seed(0)
    return OBJECTIVES[name](build_encoder("resnet_tiny_s2", 16), 16, 8, 0.2).eval()


def views() -> torch.Tensor:
    return torch.rand(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.requires_grad]


def worker(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    learned = {}
    for name in OBJECTIVES:
        model = model_of(name)
        v1, v2 = views().chunk(WORLD, dim=1)[rank]
        loss = model(v1, v2, gather_rows, rank)
        loss.backward()
        # What DistributedDataParallel does, which itself takes seconds to import.
        for grad in gradients(model):
            dist.all_reduce(grad)
            grad /= WORLD
        learned[name] = (loss.item(), [grad.numpy() for grad in gradients(model)])
    results.put((rank, learned))
    dist.destroy_process_group()


def test_two_real_processes_equal_one_worker_on_the_joined_batch():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    processes = mp.spawn(worker, args=(port, results), nprocs=WORLD, join=False)
    workers = dict(results.get() for _ in range(WORLD))
    processes.join()

    for name in OBJECTIVES:
        model = model_of(name)
        joined = model(*views())
        joined.backward()
        mean = sum(workers[rank][name][0] for rank in range(WORLD)) / WORLD
        assert mean == pytest.approx(joined.item(), rel=1e-5), name
        for rank in range(WORLD):
            for theirs, ours in zip(workers[rank][name][1], gradients(model), strict=True):
                torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-5)
        assert max(float(grad.abs().max()) for grad in gradients(model)) > 1e-2, name
