"""A backend in NumPy that compiles nothing, with autograd's derivatives: the proof that the protocols are small."""

import contextlib
import functools
from types import SimpleNamespace

import autograd
import autograd.numpy as anp
import numpy as np
from autograd.scipy.stats import norm
from autograd.tracer import getval, isbox

from vi_reparam import api
from vi_reparam.backend.backend import Backend
from vi_reparam.backend.data import Data, leaf_form
from vi_reparam.backend.tracer import PlateInfo, Record, Statement
from vi_reparam.objectives.elbo import Elbo
from vi_reparam.objectives.run import Runner, first_params
from vi_reparam.posterior.codec import Codec
from vi_reparam.sites.emission import ALONE, emit_vector
from vi_reparam.sites.recorder import recording

value_of = lambda x: value_of(getval(x)) if isbox(x) else x  # noqa: E731
fold_in = lambda key, number: hash((key, number)) & (2**63 - 1)  # noqa: E731
RUNS = []
"""The runs that are on, the innermost last."""


NAMES = {"concat": anp.concatenate, "permute_dims": anp.transpose, "astype": lambda x, dtype: x.astype(dtype)}
"""What autograd's NumPy calls otherwise than the array API."""


def tree_map(fn, tree, *others):
    if isinstance(tree, dict):
        return {k: tree_map(fn, v, *(o[k] for o in others)) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [tree_map(fn, *own) for own in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return None if tree is None else fn(tree, *others)


def tree_leaves(tree):
    tree = [tree[k] for k in sorted(tree)] if isinstance(tree, dict) else tree
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in tree_leaves(part)]
    return [] if tree is None else [tree]


def vmap(fn, in_axes=0):
    def rows(*args):
        num = len(tree_leaves(args)[0])
        return ops.stacked([fn(*(tree_map(lambda x, i=i: x[i], a) for a in args)) for i in range(num)])

    return rows


ops = SimpleNamespace(
    name="numpy",
    array_module="numpy",
    xp=SimpleNamespace(**{**vars(anp), **NAMES}),
    stop_gradient=value_of,
    concrete=value_of,
    to_numpy=lambda x: np.asarray(value_of(x)),
    asarray=lambda x, dtype=None: x if isbox(x) else np.asarray(x, dtype),
    float_dtype=lambda: np.dtype(float),
    key=lambda seed: fold_in(seed, -1),
    root_key=lambda: RUNS[-1].next_key(),
    fold_in=fold_in,
    split=lambda key, num: [fold_in(key, -2 - i) for i in range(num)],
    normal=lambda key, shape, dtype: np.random.default_rng(key).standard_normal(shape).astype(dtype),
    uniform=lambda key, shape, dtype: 1.0 - np.random.default_rng(key).random(shape).astype(dtype),
    vmap=vmap,
    many=lambda fn, key, num: ops.stacked([fn(own) for own in ops.split(key, num)]),
    grad=autograd.grad,
    compiled=lambda fn: fn,
    at_once=contextlib.nullcontext,
    form=lambda tree: (repr(tree_map(np.shape, tree)), *map(leaf_form, map(np.shape, tree_leaves(tree)))),
    tree_map=tree_map,
    stacked=lambda trees: tree_map(lambda *rows: anp.stack(rows), *trees),
    tree_leaves=tree_leaves,
)
REAL, POSITIVE = SimpleNamespace(is_discrete=False), SimpleNamespace(is_discrete=False)


class Identity:
    inv = inverse_shape = __call__ = lambda self, x: x
    log_abs_det_jacobian = staticmethod(lambda x, y: 0.0 * x)


class Distribution:
    event_shape, event_dim, support, has_rsample = (), 0, REAL, True
    expand = to_event = lambda self, shape: self
    shape = property(lambda self: lambda: (*self.batch_shape, *self.event_shape))


class Normal(Distribution):
    def __init__(self, loc, scale):
        self.loc, self.scale = ops.asarray(loc, float), ops.asarray(scale, float)
        self.batch_shape = np.broadcast_shapes(self.loc.shape, self.scale.shape)

    expand = lambda self, shape: Normal(self.loc + anp.zeros(shape), self.scale)  # noqa: E731
    log_prob = lambda self, value: norm.logpdf(value, self.loc, self.scale)  # noqa: E731
    draw = lambda self, key: self.loc + self.scale * ops.normal(key, self.batch_shape, float)  # noqa: E731


class Delta(Distribution):
    def __init__(self, v, *, log_density=0.0, event_dim=0):
        self.v, self.log_density, self.batch_shape = v, log_density, tuple(v.shape[: v.ndim - event_dim])

    log_prob = lambda self, value: self.log_density + anp.zeros(self.batch_shape)  # noqa: E731
    draw = lambda self, key: self.v  # noqa: E731


class JointVector(Distribution):
    known_by_draws, event_dim = True, 1

    def __init__(self, size, make, *, site, batch_shape=()):
        self.make, self.site, self.batch_shape, self.event_shape = make, site, batch_shape, (size,)

    def draw(self, key):
        value, self.log_q = emit_vector(ops, self.site, self.make(key), lambda: ALONE, linear=())
        return value

    log_prob = lambda self, value: self.log_q  # noqa: E731


class Run:
    """One run of a program: what it is given, and what it leaves."""

    def __init__(self, key, params=None, values=None, **flags):
        self.key, self.params, self.values, self.flags = key, params, values or {}, flags
        self.count, self.records, self.constraints, self.plates = 0, {}, {}, []

    def next_key(self):
        self.count += 1
        return fold_in(self.key, self.count)


class Host:
    name, title, xp, vector = "numpy", "NumPy", ops.xp, JointVector
    dist = SimpleNamespace(Normal=Normal, Delta=Delta, constraints=SimpleNamespace(real=REAL, positive=POSITIVE))
    array, scope = staticmethod(lambda x: np.asarray(x, float)), staticmethod(lambda: "")
    support_of, biject_to = staticmethod(lambda distribution: distribution.support), staticmethod(lambda s: Identity())
    support_kind, differentiating = staticmethod(lambda support, distribution=None: "real"), staticmethod(lambda: True)
    unwrap, read = staticmethod(lambda distribution: None), staticmethod(lambda distribution: None)
    draw = staticmethod(lambda distribution, key: distribution.draw(key))

    def sample(self, name, distribution, *, obs=None, infer=None):
        run = RUNS[-1]
        for plate in run.plates:
            sizes = (plate.size, *(1 for _ in range(-1 - plate.dim)))
            distribution = distribution.expand(np.broadcast_shapes(sizes, distribution.batch_shape))
        value, given, plates = None if run.flags.get("resample") else obs, run.values, tuple(run.plates)
        observed = value is not None
        if not observed:
            value = given(Statement(name, distribution, plates)) if callable(given) else given.get(name)
        value = distribution.draw(run.next_key()) if value is None else value
        density, auxiliary = functools.partial(distribution.log_prob, value), "is_auxiliary" in (infer or {})
        run.records[name] = Record(
            "sample", value, distribution, density, observed, plates=plates, is_auxiliary=auxiliary
        )
        return value

    known_params = staticmethod(lambda: tuple(RUNS[-1].params or ()))

    def param(self, name, init, *, constraint=None, event_dim=None):
        run = RUNS[-1]
        value = (run.params or {}).get(name)
        if value is None:
            value = np.asarray(init(run.next_key()) if callable(init) else init, float)
        value = value_of(value) if run.flags.get("frozen") else value
        run.constraints[name], run.records[name] = constraint, Record("param", value)
        return value

    @contextlib.contextmanager
    def plate(self, name, size, *, dim=None, subsample_size=None):
        run = RUNS[-1]
        run.plates.append(PlateInfo(name, dim or -1 - len(run.plates), size, size))
        run.records[name] = Record("plate", np.arange(size), plates=(run.plates[-1],))
        yield np.arange(size)
        run.plates.pop()

    def deterministic(self, name, value):
        RUNS[-1].records[name] = Record("deterministic", value, plates=tuple(RUNS[-1].plates))
        return value


class Tracer:
    shapes = staticmethod(lambda fn: fn(ops.key(0)))
    constants, arrays_of = contextlib.nullcontext, staticmethod(lambda support: [])

    def depends(self, fn, inputs):
        raise NotImplementedError

    def run(self, program, args, kwargs, key, *, params=None, values=None, recorder=None, **flags):
        RUNS.append(Run(key, params, values, **flags))
        try:
            with recording(recorder):
                program(*args, **kwargs)
            return RUNS[-1].records
        finally:
            self.constraints = RUNS.pop().constraints


class NumpyCodec(Codec):
    array = staticmethod(lambda value: np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None)
    restore = staticmethod(lambda array, dtype: array)


class Program:
    """Adam, by autograd's gradient of the objective; positive parameters by their logarithms."""

    execution = "plain Python"

    def __init__(self, task, data, plan):
        self.task, self.data, self.plan, self.positive = task, data, plan, set()
        for program in (task.guide, task.model):
            backend.tracer.run(program, *data.call, ops.key(0))
            self.positive |= {n for n, constraint in backend.tracer.constraints.items() if constraint is POSITIVE}

    def values(self, free):
        parts = anp.split(free, np.cumsum([np.prod(s, dtype=int) for s in self.shapes.values()])[:-1])
        found = {n: anp.reshape(x, shape) for (n, shape), x in zip(self.shapes.items(), parts, strict=True)}
        return {n: anp.exp(x) if n in self.positive else x for n, x in found.items()}

    def init(self, key, values, data):
        self.shapes = {n: np.shape(x) for n, x in sorted(values.items())}
        free = np.concatenate([np.ravel(np.log(values[n]) if n in self.positive else values[n]) for n in self.shapes])
        return {"key": key, "step": 0, "rate": 1.0, "seen": 0, "free": free, **dict.fromkeys("mvxy", 0.0 * free)}

    def loss(self, free, state):
        task, key = self.task, fold_in(state["key"], state["step"])
        return task.objective.surrogate(key, task.model, task.guide, *self.data.call, params=self.values(free))[0]

    def advance(self, state, steps):
        losses, rate, num = [], self.plan.groups[0].learning_rate, self.plan.num_steps
        for _ in range(steps):
            loss, slope = autograd.value_and_grad(self.loss)(state["free"], state)
            losses.append(float(loss))
            if not np.isfinite([loss, *slope]).all():
                return state, np.array(losses), False
            t, m, v = state["step"] + 1, 0.9 * state["m"] + 0.1 * slope, 0.99 * state["v"] + 0.01 * slope**2
            part = state["rate"] * (1.0 if num is None else 0.505 + 0.495 * np.cos(np.pi * t / num))
            free = state["free"] - part * rate * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-9)
            sums = {"x": state["x"] + free, "y": state["y"] + free**2, "seen": state["seen"] + 1}
            state = {**state, **sums, "step": t, "free": free, "m": m, "v": v}
        return state, np.array(losses), True

    params = lambda self, state: self.values(state["free"])  # noqa: E731
    move = lambda self, state, vector, rate: {**state, "free": vector, "rate": rate}  # noqa: E731
    arrays = staticmethod(lambda state: {name: np.asarray(value) for name, value in state.items()})

    def moments(self, state):
        num, zero = state["seen"], 0.0 * state["free"]
        return {**state, "x": zero, "y": zero, "seen": 0}, state["x"] / num, state["y"] / num

    def restore(self, state, arrays):
        return {name: arrays[name][()] if name in ("free", *"mvxy") else arrays[name].item() for name in state}

    def non_finite(self, state):
        runner = Runner(backend, self.task.model, self.task.guide, *self.data.call, params=self.params(state))
        costs = runner(fold_in(state["key"], state["step"])).costs
        return {n: f"log density in the {side}" for (side, n), c in costs.items() if not np.isfinite(c).all()}


class Engine:
    reads_values, array_functions, codec = (), "numpy", NumpyCodec()
    runs_at_once, draws, settle = (staticmethod(lambda *_, given=given: given) for given in (True, {}, None))
    optimizer, versions = staticmethod(lambda plan: plan), staticmethod(lambda: {"numpy": np.__version__})
    program = staticmethod(lambda task, data, optimizer, **_: Program(task, data, optimizer))
    call = staticmethod(lambda fn, data, *inputs, name=None: fn(*data.call, *inputs))

    key = staticmethod(lambda seed: ops.key(int(seed)))

    def data(self, args, kwargs, model=None, *, inputs=(), finite=True):
        call = tuple(args), dict(kwargs)
        return Data(*call, ops.form(call), join=lambda arrays: call)

    def many(self, fn, data, key, num, *inputs, size, first=0, name=None, at_once=True):
        return ops.stacked([fn(fold_in(key, i), *data.call, *inputs) for i in range(first, first + num)])

    def first_params(self, model, guide, data, key, known):
        return {**first_params(backend, key, model, guide, *data.call), **known}

    def check(self, task, data, start, key, *, known):
        Runner(backend, task.model, task.guide, *data.call, params=start(key))(key)


host = Host()
backend = Backend("numpy", "NumPy", ops, host, Tracer(), Engine())


class ELBO(Elbo):
    backend = backend

    def __init__(self, num_particles=1, *, entropy="monte_carlo"):
        super().__init__(num_particles, entropy)
        self.num_particles = num_particles


Posterior = type("Posterior", (api.Posterior,), {"backend": backend})
OWN = {"backend": backend, "elbo": ELBO, "posterior_type": Posterior, "estimate": staticmethod(lambda guide, _: guide)}
Guided = type("Guided", (api.Guided,), OWN)
guide, *_ = api.functions_of(Guided)
