"""A model's prior statements, run in a guide: each latent is drawn from its own prior times a factor."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from vi_reparam.backend.backend import Backend
from vi_reparam.backend.ops import Array, Params
from vi_reparam.backend.tracer import Record, Statement
from vi_reparam.errors import SiteError
from vi_reparam.programs.prior_table import prior_of
from vi_reparam.programs.priors import Factor, Normal, Prior
from vi_reparam.programs.split import Draws, Split

Factors = Callable[[str, Draws], Factor]
"""A site's factor, given the locals drawn before it."""


class Drawn(NamedTuple):
    """A draw of all locals.

    Attributes:
        values: by site.
        priors: by site; `normals`: from which they were drawn.
        records: the model's run at the draw; empty where it was cut off after the last latent.
    """

    values: Draws
    priors: dict[str, Prior]
    normals: dict[str, Normal]
    records: dict[str, Record]


class _EnoughError(Exception):
    """Ends a run of the model after its last latent: nothing behind it is asked for."""


@dataclasses.dataclass(frozen=True)
class Conditionals:
    """A model's statements, ready to be run.

    Attributes:
        params: the model's own parameters.
    """

    backend: Backend
    model: Any
    split: Split
    args: Any
    kwargs: Any
    params: Params

    def draw(self, given: Draws, factors: Factors, noise: Array, *, whole: bool = False) -> Drawn:
        """Draw the locals one after the other.

        Args:
            given: the globals.
            noise: standard normal, of the locals' coordinates.
            whole: whether to run on after the last latent, for the records.

        Raises:
            SiteError: for a site whose statement is not met.
        """
        ops, layout, split = self.backend.ops, self.split.layout, self.split
        parts = {part.site.name: part for part in layout.parts}
        waiting = {part.site.name for part in split.locals}
        values, priors, normals = {}, {}, {}

        def give(statement: Statement) -> Array:
            name, part = statement.name, parts[statement.name]
            if name in given:
                return layout.place(part, given[name])[0]
            priors[name] = prior_of(self.backend, statement.distribution, part)
            normals[name] = priors[name].times(ops, factors(name, values))
            values[name] = normals[name].place(split.cut(ops, name, noise))
            waiting.discard(name)
            if not waiting and not whole:
                raise _EnoughError
            return layout.place(part, values[name])[0]

        records: dict[str, Record] = {}
        if waiting or whole:
            run, options = self.backend.tracer.run, {"params": self.params, "full_data": True, "alone": True}
            with contextlib.suppress(_EnoughError):
                records = run(self.model, self.args, self.kwargs, ops.key(0), values=give, **options)
        if waiting:
            raise SiteError(
                f"site {min(waiting)!r} is drawn where its prior cannot be read (in scan or cond): write it outside, "
                "or use another guide family"
            )
        return Drawn(values, priors, normals, records)
