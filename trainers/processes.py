"""The process group of a learner of several processes: where they meet, how the group starts and ends.

Invariant: the meeting point listens on the first process's address alone, on a port that the system found free; a process
that waits for another longer than TIMEOUT fails instead of waiting for ever. Called by the learner actors.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

Store = TCPStore
"""Where processes meet before they have a group."""
TIMEOUT = timedelta(minutes=15)
"""Of one collective. Long, because the others wait at one while the first process writes a checkpoint."""


def open_store(address: str) -> tuple[Store, int]:
    """The meeting point, in the first process: listens on `address` (an IP of this node); the store and its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    port = int(listener.getsockname()[1])
    # The store takes the descriptor over and closes it. Told a port only, it would listen on all addresses.
    descriptor = listener.detach()
    store = Store(address, port, is_master=True, timeout=TIMEOUT, wait_for_workers=False, master_listen_fd=descriptor)
    return store, port


def connect_store(address: str, port: int) -> Store:
    """The same in every other process."""
    return Store(address, port, is_master=False, timeout=TIMEOUT)


def start_group(store: Store, rank: int, num_processes: int, has_gpu: bool, address: str) -> None:
    """Start the process group: nccl with GPUs, gloo without. Returns when all are there; `address`: this node's IP."""
    interface = interface_of(address)
    if interface:  # else both libraries guess from the host's name, which may lead to another network, or nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    device = torch.device("cuda", 0) if has_gpu else None  # Ray shows each process its own GPU alone
    backend = "nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_processes, timeout=TIMEOUT, device_id=device)


def end_group() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the IP `address`; None if none has."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, entries in interfaces if any(entry.address == address for entry in entries)), None)
