"""One contrastive batch in one process and split over two; run as a program by a test."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing

from primelens.tune.objectives import lit_loss, siglip_loss

PROCESSES, ROWS, WIDTH = 2, 3, 5


def parameters() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(WIDTH, WIDTH), (WIDTH, WIDTH), (), ()]
    return [
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes
    ]


def losses(name: str, rows: slice, everywhere: bool) -> np.ndarray:
    """The loss, then all gradients, of some rows of the batch."""
    draw = torch.Generator().manual_seed(1)
    image, text = torch.randn((2, PROCESSES * ROWS, WIDTH), generator=draw, dtype=torch.float64)
    left, right, log_scale, bias = tuned = parameters()
    image, text = image[rows] @ left, text[rows] @ right
    if name == "lit":
        loss = lit_loss(image, text, log_scale, everywhere=everywhere) + 0 * bias
    else:
        loss = siglip_loss(image, text, log_scale, bias, everywhere=everywhere)
    loss.backward()
    gradients = [p.grad.flatten() for p in tuned if p.grad is not None]
    found: np.ndarray = torch.cat([loss.detach()[None], *gradients]).numpy()
    return found if name == "siglip" else found[:-1]  # LiT has no bias


def work(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES
    )
    results = {}
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    for name in ("lit", "siglip"):
        for label, everywhere in (("two", True), ("halves", False)):
            mean = torch.from_numpy(losses(name, own, everywhere)) / PROCESSES
            distributed.all_reduce(mean)
            results[f"{name}.{label}"] = mean.numpy()
        results[f"{name}.one"] = losses(name, slice(None), False)
    if rank == 0:
        np.savez(Path(folder) / "found.npz", **results)
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(work, args=(sys.argv[1],), nprocs=PROCESSES)
