"""A fit's own parameters, kept apart from Pyro's store."""

from __future__ import annotations

import contextlib
import itertools
import re
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch.distributions import transform_to

from vi_reparam.backend.tracer import without_value
from vi_reparam.errors import ArgumentError
from vi_reparam_pyro.lanes.vmap import keyed

Array = Any

_SCOPE = re.compile(r"^vr\d+/")
_COUNT = itertools.count()


def new_scope() -> str:
    """What no other guide's parameters in Pyro's store begin with."""
    return f"vr{next(_COUNT)}/"


def clean(name: str) -> str:
    """A parameter's name without the scope that keeps two guides apart in Pyro's store."""
    return _SCOPE.sub("", name)


class Parameters:
    """Unconstrained leaves by name, with their constraints.

    Attributes:
        free: leaves that an optimizer moves. Those of a network are the network's own, which a
            fit trains in place.
        constraints: by name.
    """

    def __init__(self, free: dict[str, Array], constraints: dict[str, Any]) -> None:
        self.free = free
        self.constraints = constraints

    def constrained(self) -> dict[str, Array]:
        """The values that the program sees, differentiable in the leaves."""
        values = {}
        for name, leaf in self.free.items():
            value = leaf if self.constraints[name] is constraints.real else transform_to(self.constraints[name])(leaf)
            value.unconstrained = weakref.ref(leaf)  # as in Pyro's store
            values[name] = value
        return values

    def values(self) -> dict[str, Array]:
        """The constrained values, as constants of their own."""
        with torch.no_grad():
            return {name: value.detach().clone() for name, value in self.constrained().items()}

    def start_from(self, values: dict[str, Array]) -> None:
        """Move some leaves to these constrained values."""
        with torch.no_grad():
            for name, value in values.items():
                self.free[name].copy_(_unconstrained(value, self.constraints[name]))


def _unconstrained(value: Array, constraint: Any) -> Array:
    return value if constraint is constraints.real else transform_to(constraint).inv(value)


class _Noted(Messenger):
    """Takes note of parameters' constraints; those that are known need no initial value."""

    def __init__(self, known: Mapping[str, Array]) -> None:
        super().__init__()
        self.known = known
        self.constraints: dict[str, Any] = {}

    def _pyro_param(self, msg: Any) -> None:
        name, init = clean(msg["name"]), msg["args"][1] if len(msg["args"]) > 1 else None
        self.constraints[msg["name"]] = msg["kwargs"].get("constraint", constraints.real)
        if name in self.known and not isinstance(init, torch.nn.Parameter):  # a module reads its own weight
            value = self.known[name].detach()
            value.unconstrained = weakref.ref(value)
            msg["value"], msg["done"] = value, True


def first_parameters(
    model: Any, guide: Any, args: Any, kwargs: Any, *, key: int, known: Mapping[str, Array] | None = None
) -> Parameters:
    """The initial values at the param sites of guide and model, in a store of their own.

    Args:
        known: constrained values of some, for which then no initial value is computed. A network keeps its weights.

    Raises:
        ArgumentError: if the model's own parameter has the name of one of the guide's.
    """
    store, known = pyro.get_param_store(), known or {}
    noted = _Noted(known)
    with store.scope(), keyed(key), torch.no_grad(), noted:
        with poutine.trace() as tracing:  # called as a function, it would add shapes to a refusal
            guide(*args, **kwargs)
        poutine.replay(model, trace=tracing.get_trace())(*args, **kwargs)
        made = {**dict.fromkeys(noted.constraints), **dict(store.named_parameters())}
        limits = {full: store._constraints.get(full, noted.constraints.get(full)) for full in made}
    free: dict[str, Array] = {}
    for full, leaf in made.items():
        name = clean(full)
        if name in free:
            raise ArgumentError(f"the model's parameter {name!r} has the name of one of the guide's: rename it")
        if leaf is None:
            with torch.no_grad():
                leaf = _unconstrained(known[name], limits[full])
        free[name] = leaf if isinstance(leaf, torch.nn.Parameter) else leaf.detach().clone().requires_grad_()
    return Parameters(free, {clean(full): constraint for full, constraint in limits.items()})


class using(Messenger):  # noqa: N801  (handlers are lower case in Pyro)
    """Give param statements these constrained values; a network's weights are swapped for the while.

    Args:
        values: by name.
        partial: whether parameters without a value are left alone.

    Raises:
        ArgumentError: at the end, for all parameters that have none.
    """

    def __init__(self, values: dict[str, Array], *, partial: bool = False) -> None:
        super().__init__()
        self.values, self.partial = values, partial
        self.missing: set[str] = set()
        self.modules: dict[str, tuple[Array, Array]] = {}

    def __exit__(self, *args: Any) -> Any:
        for leaf, data in self.modules.values():
            leaf.data = data
        self.modules = {}
        done, missing, self.missing = super().__exit__(*args), self.missing, set()
        if missing and args[0] is None:
            raise without_value(missing, self.values)
        return done

    def _pyro_param(self, msg: Any) -> None:
        name = clean(msg["name"])
        if name not in self.values:
            if not self.partial:
                self.missing.add(name)
            return
        value = self.values[name]
        init = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(init, torch.nn.Parameter):  # a module reads its own weight, whatever is returned here
            if value is not init:
                if name not in self.modules:
                    self.modules[name] = (init, init.data)
                    init.data = value.detach()
                value = init
        elif not hasattr(value, "unconstrained"):
            value = value.view_as(value)  # the one given stays as it is: a weak reference cannot be pickled
            value.unconstrained = weakref.ref(value)
        msg["value"] = value
        msg["done"] = True


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Pyro's store emptied for a while: modules write to it on their own, and no two fits may meet there.

    `ParamStoreDict.scope` would take from every value that was given out before the reference to its leaf, which
    `SVI` asks for.
    """
    store = pyro.get_param_store()
    held = store._params, store._constraints, store._param_to_name
    store._params, store._constraints, store._param_to_name = {}, {}, {}
    try:
        yield
    finally:
        store._params, store._constraints, store._param_to_name = held
