"""A model's prior statements, run in a guide: each latent is drawn from its own prior times a factor."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array, Key, Params
from vi_reparam.backend.tracer import Record, Statement
from vi_reparam.errors import SiteError
from vi_reparam.programs.conjugate import conjugate_of
from vi_reparam.programs.prior_table import prior_of
from vi_reparam.programs.priors import Factor, Normal
from vi_reparam.programs.split import Draws, Split

Factors = Callable[[str, Draws], Factor]
"""A site's factor, given the locals drawn before it."""


class Drawn(NamedTuple):
    """A draw of all locals.

    Attributes:
        values: by site.
        priors: by site, a `Prior`, or a `Conjugate` where it has a row; `normals`: from which the others were drawn.
        records: the model's run at the draw; empty where it was cut off after the last latent.
    """

    values: Draws
    priors: dict[str, Any]
    normals: dict[str, Normal]
    records: dict[str, Record]


class _EnoughError(Exception):
    """Ends a run of the model after its last latent: nothing behind it is asked for."""


@dataclasses.dataclass(frozen=True)
class Conditionals:
    """A model's statements, ready to be run.

    Attributes:
        params: the model's own parameters.
        key: of the draws from gammas and betas; without one these priors are read as normals too.
    """

    backend: Backend
    model: Any
    split: Split
    args: Any
    kwargs: Any
    params: Params
    key: Key | None = None

    def draw(
        self, given: Draws, factors: Factors, noise: Array, *, whole: bool = False, held: Draws | None = None
    ) -> Drawn:
        """Draw the locals one after the other.

        Args:
            given: the globals.
            noise: standard normal, of the locals' coordinates.
            whole: whether to run on after the last latent, for the records.
            held: values of the locals, which are taken in place of draws.

        Raises:
            SiteError: for a site whose statement is not met.
        """
        ops, layout, split = self.backend.ops, self.split.layout, self.split
        parts = {part.site.name: part for part in layout.parts}
        values, priors, normals = dict[str, Array](), dict[str, Any](), dict[str, Normal]()
        keys = {}
        if self.key is not None and split.rows:
            keys = dict(zip(split.rows, ops.split(self.key, len(split.rows)), strict=True))

        def draw(name: str) -> Array:
            product = priors[name].times(ops, factors(name, values))
            if name in keys:
                return product.draw(ops, keys[name])
            normals[name] = product
            return product.place(split.cut(ops, name, noise))

        def run(wanted: set[str], *, whole: bool) -> dict[str, Record]:
            waiting = set(wanted)

            def give(statement: Statement) -> Array | None:
                name, part = statement.name, parts.get(statement.name)
                if part is None:  # an outcome that was left out
                    return None
                if name in given:
                    return layout.place(part, given[name])[0]
                if name in waiting:
                    read = conjugate_of if name in keys else prior_of
                    priors[name] = read(self.backend, statement.distribution, part)
                    values[name] = draw(name) if held is None else held[name]
                    waiting.discard(name)
                # one that is drawn later has no part in the priors that are asked for
                value = values[name] if name in values else ops.xp.zeros(part.shape, dtype=noise.dtype)
                if not waiting and not whole:
                    raise _EnoughError
                return layout.place(part, value)[0]

            records: dict[str, Record] = {}
            if waiting or whole:
                options = {"params": self.params, "full_data": True, "alone": True}
                with contextlib.suppress(_EnoughError):
                    records = self.backend.tracer.run(
                        self.model, self.args, self.kwargs, ops.key(0), values=give, **options
                    )
            if waiting:
                raise SiteError(
                    f"site {min(waiting)!r} is drawn where its prior cannot be read (in scan or cond): write it "
                    "outside, or use another guide family"
                )
            return records

        run(set(split.first), whole=False)
        records = run({part.site.name for part in split.locals} - set(split.first), whole=whole)
        return Drawn(values, priors, normals, records)
