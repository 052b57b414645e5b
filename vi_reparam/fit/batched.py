"""The model of one batch, whose terms stand for all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array
from vi_reparam.programs.latents import Latents
from vi_reparam.programs.layout import Layout
from vi_reparam.sites.totals import scaled

ANCHOR = "vr_anchor"
"""The argument that holds a `Batched.Anchor`, and the site of the term that it adds."""

Anchor = Mapping[str, Array]
"""``center``, a vector of unconstrained latents, shape ``[D]``; and of the terms of all rows there, ``height``, their
sum, and ``slope``, its gradient, shape ``[D]``."""


class Batched:
    """A model of one batch, its rows' plate scaled to all rows: a program of the framework.

    Near an anchor most of what a batch adds by chance is known. With one, the batch's terms are replaced by the
    anchor's linear function of the latents plus the difference of the batch's terms to a linear function of its own.
    That has the same mean over batches, and far less variance (control variates; Baker et al. 2019).

    Args:
        model: as it was given.
        plate: the rows' plate.
        num_rows: in all.
    """

    def __init__(self, backend: Backend, model: Callable[..., Any], plate: str, num_rows: int) -> None:
        self.backend, self.model, self.batched_plate, self.num_rows = backend, model, plate, num_rows
        self.latents = Latents(backend, model)
        self.__name__ = str(getattr(model, "__name__", type(model).__name__))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        anchor: Anchor | None = kwargs.pop(ANCHOR, None)
        if anchor is None:
            return self._scaled(*args, **kwargs)
        ops, host = self.backend.ops, self.backend.host
        found = self.backend.tracer.within(self._scaled, args, kwargs)
        layout, rows = self.layout(args, kwargs), self.rows(args, kwargs)
        center = anchor["center"]
        height, slope = ops.stop_gradient(rows(center)), ops.stop_gradient(ops.grad(rows)(center))
        moved = layout.pack({name: r.value for name, r in found.items() if r.is_latent}) - center
        host.factor(ANCHOR, anchor["height"] - height + ops.xp.sum((anchor["slope"] - slope) * moved))

    def _scaled(self, *args: Any, **kwargs: Any) -> Any:
        with self.backend.host.part_of(self.batched_plate, self.num_rows):
            return self.model(*args, **kwargs)

    def layout(self, args: Any, kwargs: Any) -> Layout:
        """Of all latents.

        Raises:
            SiteError: for a discrete one, or one whose support has no bijection.
        """
        sites = self.latents.sites(args, kwargs)
        form = self.backend.ops.form((args, kwargs))
        return self.latents.layouts.get(form, lambda: Layout.of(self.backend, sites, "vr.batches")).at(sites)

    def rows(self, args: Any, kwargs: Any) -> Callable[[Array], Array]:
        """The terms of a batch's rows, scaled to all, as a function of the vector of latents."""
        backend, layout = self.backend, self.layout(args, kwargs)

        def at(vector: Array) -> Array:
            values = {name: value for name, (value, _) in layout.unpack(vector).items()}
            found = backend.tracer.run(self._scaled, args, kwargs, backend.ops.key(0), values=values, alone=True)
            inside = [r for r in found.values() if any(p.name == self.batched_plate for p in r.plates)]
            terms = [scaled(r, r.log_prob()) for r in inside if r.kind == "sample"]
            return sum((backend.ops.xp.sum(term) for term in terms), start=backend.ops.asarray(0.0))

        return at
