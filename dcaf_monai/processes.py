"""The processes of one training: which of how many this is, where it computes, what memory it took."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist


def process_place() -> tuple[int, int]:
    """Number of this process and how many there are."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)


def agreed(wish: bool, device: torch.device) -> bool:
    """True in every process when it is in one of them."""
    if process_place()[1] == 1:
        return wish
    votes = torch.tensor(int(wish), device=device)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return bool(votes.item())


def join_processes(device: str) -> bool:
    """Meet the other processes of a torchrun; False when there are none or we have met already."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return False
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return True


def torch_device(device: str) -> torch.device:
    if device == "cuda" and process_place()[1] > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device)


def peak_memory_mib() -> float:
    """Largest resident size of this process so far; NaN where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
