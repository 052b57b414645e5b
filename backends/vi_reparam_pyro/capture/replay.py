"""A graph on a GPU recorded once, and launched as one: what Python takes for each operation is saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vi_reparam_pyro.lanes.seeding import salt_now, salted

Array = Any
Run = Callable[..., tuple[Array, ...]]

WARM = 3
"""Runs before a recording, in which kernels are compiled and measured."""


class Replay:
    """A function of tensors on a GPU as a CUDA graph.

    Its arguments and the salt of its noise have places of their own there, which a call fills before it launches.

    Args:
        run: it reads no value in Python; what it closes over stays as it is.
        arguments: an example.
        record: ``record(run, device)`` runs it once, and gives (what launches it again, its results).

    Raises:
        RuntimeError: of torch's, for what cannot be recorded.
    """

    def __init__(self, run: Run, arguments: tuple[Array, ...], record: Callable[..., Any] | None = None) -> None:
        self._arguments = tuple(x.detach().clone() for x in arguments)
        self._salt = torch.zeros((), dtype=torch.int64, device=arguments[0].device)
        self._salt.fill_(salt_now())

        def on_places() -> tuple[Array, ...]:
            with salted(self._salt):
                return run(*self._arguments)

        self._launch, self._results = (record or recorded)(on_places, arguments[0].device)

    def __call__(self, *arguments: Array) -> tuple[Array, ...]:
        for place, x in zip(self._arguments, arguments, strict=True):
            place.copy_(x)
        self._salt.fill_(salt_now())
        self._launch()
        return tuple(x.clone() for x in self._results)  # the next launch writes to its own


def recorded(run: Callable[[], tuple[Array, ...]], device: torch.device) -> tuple[Callable[[], Any], tuple[Array, ...]]:
    """What launches a function again, and where its results are."""
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
    return graph.replay, results
