"""Same noise, same numbers: value, log density, score term and gradient in both backends, to 1e-10."""

import numpy as np
import pytest
import torch
from contract.harness import QUICK
from contract.own_samplers import SkewNormal, SlowExponential
from contract.plain import plain_rejection_loop

import vi_reparam_pyro  # noqa: F401  (registers the backend)
from vi_reparam.backend.registry import load
from vi_reparam.estimators import Implicit, MeasureValued, Pathwise, Rejection, ScoreFunction
from vi_reparam.families import FAMILIES, SamplerFamily

jax = pytest.importorskip("jax")
pytest.importorskip("numpyro")

SHAPE = (7,)
RNG = np.random.default_rng(5)
VECTORS = RNG.normal(size=(*SHAPE, 3))
PARAMS = {
    "normal": (RNG.normal(size=SHAPE), np.exp(RNG.normal(size=SHAPE))),
    "gamma": (np.array([0.05, 0.4, 1.0, 1.3, 3.0, 20.0, 5e3]), np.exp(RNG.normal(size=SHAPE))),
    "inverse_gamma": (np.array([0.3, 0.7, 1.0, 1.3, 3.0, 20.0, 500.0]), np.exp(RNG.normal(size=SHAPE))),
    "chi2": (np.array([0.3, 0.7, 1.0, 2.3, 3.0, 20.0, 500.0]),),
    "beta": (np.exp(RNG.normal(size=SHAPE)), np.exp(RNG.normal(size=SHAPE))),
    "dirichlet": (np.exp(RNG.normal(size=(*SHAPE, 4))),),
    "student_t": (np.exp(RNG.normal(size=SHAPE)) + 0.5, RNG.normal(size=SHAPE), np.exp(RNG.normal(size=SHAPE))),
    "von_mises": (RNG.normal(size=SHAPE), np.exp(2.0 * RNG.normal(size=SHAPE))),
    "von_mises_fisher": (VECTORS / np.linalg.norm(VECTORS, axis=-1, keepdims=True), np.exp(RNG.normal(size=SHAPE))),
    "truncated_normal": (
        RNG.normal(size=SHAPE),
        np.exp(0.3 * RNG.normal(size=SHAPE)),
        np.array([-1.0, -0.2, 2.0, 0.0, -np.inf, -3.0, 4.0]),
        np.array([1.0, 0.3, 3.0, np.inf, 0.5, -2.0, np.inf]),
    ),
    "bernoulli": (RNG.normal(size=SHAPE),),
    "poisson": (np.exp(RNG.normal(size=SHAPE)),),
    "on a circle": (VECTORS[:, :2] / np.linalg.norm(VECTORS[:, :2], axis=-1, keepdims=True), np.exp(VECTORS[:, 2])),
    "own skew normal": (RNG.normal(size=SHAPE), np.exp(RNG.normal(size=SHAPE))),
    "own exponential": (np.exp(RNG.normal(size=SHAPE)),),
}
ALL = FAMILIES | {
    "on a circle": FAMILIES["von_mises_fisher"],
    "own skew normal": SamplerFamily(SkewNormal()),
    "own exponential": SamplerFamily(SlowExponential()),
}
ESTIMATORS = (
    Pathwise(),
    Implicit(),
    Rejection(boost=1),
    Rejection(),
    ScoreFunction(),
    MeasureValued(),
)
CASES = [
    (name, estimator)
    for name, family in ALL.items()
    for estimator in ESTIMATORS
    if estimator.applies_to(family)
    and (family.shape_parameters or estimator != Rejection(boost=1))  # else nothing to augment
]
PLAIN = Rejection(boost=0, min_concentration=1.0)
CASES += [("gamma", PLAIN), ("dirichlet", PLAIN)]


class Replay:
    """An Ops whose noise is NumPy's, by the order in which it is asked for."""

    def __init__(self, ops, array, rounds=None):
        self._ops, self._array, self._count, self._known, self.rounds = ops, array, 0, rounds, []

    def __getattr__(self, name):
        return getattr(self._ops, name)

    def _rng(self):
        self._count += 1
        return np.random.default_rng(1_000 + self._count)

    def normal(self, key, shape, dtype):
        return self._array(self._rng().normal(size=shape))

    def uniform(self, key, shape, dtype):
        return self._array(1.0 - self._rng().random(size=shape))

    def poisson(self, key, rate, shape):
        return self._array(self._rng().poisson(np.asarray(rate), size=shape).astype(float))

    def rejection_loop(self, attempt, key, shape, params, max_rounds):
        # Each backend's own loop asks for noise in its own order; the plain one does so in both.
        return plain_rejection_loop(self, attempt, key, shape, params, max_rounds)

    def while_loop(self, cond, body, state):
        count = 0
        while bool(cond(state)) if self._known is None else count < self._known[len(self.rounds)]:
            state, count = body(state), count + 1
        self.rounds.append(count)
        return state


def parts(draw):
    """The arrays of a draw by name."""
    found = {"value": draw.value, "log_prob": draw.log_prob}
    if draw.score_term is not None:
        found["score_term"] = draw.score_term
    for i, branch in enumerate(draw.branches):
        found |= {f"branch {i}": branch.value, f"weight {i}": branch.weight}
    for i, log in enumerate(draw.logs or ()):
        found[f"log {i}"] = log
    return found


def total(found):
    """A scalar whose gradient mixes those of all parts, each entry with a weight of its own."""
    value = 0.0
    for i, array in enumerate(found.values()):
        weights = np.random.default_rng(i).normal(size=tuple(array.shape))
        value = value + (array * _like(array, weights)).sum()
    return value


def _like(array, weights):
    return torch.as_tensor(weights) if isinstance(array, torch.Tensor) else jax.numpy.asarray(weights)


def moving(name, params):
    """Parameters to differentiate: infinite edges have no derivative."""
    return [i for i, p in enumerate(params) if np.isfinite(p).all()]


def in_torch(name, estimator, params):
    ops = load("pyro").ops
    held = [torch.as_tensor(p) for p in params]
    leaves = [held[i].clone().requires_grad_() for i in moving(name, params)]
    for i, leaf in zip(moving(name, params), leaves, strict=True):
        held[i] = leaf
    replay = Replay(ops, torch.as_tensor)
    draw = estimator.draw(replay, ops.key(0), ALL[name], SHAPE, *held)
    found = parts(draw)
    grads = torch.autograd.grad(total(found), leaves, allow_unused=True)
    grads = [np.zeros(leaf.shape) if g is None else g.numpy() for g, leaf in zip(grads, leaves, strict=True)]
    return {k: v.detach().numpy() for k, v in found.items()}, grads, replay.rounds


def in_jax(name, estimator, params, rounds):
    ops, jnp = load("numpyro").ops, jax.numpy
    where = moving(name, params)

    def loss(leaves):
        held = [jnp.asarray(p) for p in params]
        for i, leaf in zip(where, leaves, strict=True):
            held[i] = leaf
        draw = estimator.draw(Replay(ops, jnp.asarray, rounds), ops.key(0), ALL[name], SHAPE, *held)
        found = parts(draw)
        return total(found), found

    with jax.enable_x64(True):
        gradient = jax.grad(loss, has_aux=True)
        if name != "poisson":  # NumPy draws its noise by its rate
            gradient = jax.jit(gradient, compiler_options=QUICK)
        grads, found = gradient([jnp.asarray(params[i]) for i in where])
        return {k: np.asarray(v) for k, v in found.items()}, [np.asarray(g) for g in grads]


@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize(("name", "estimator"), CASES, ids=lambda x: x if isinstance(x, str) else repr(x))
def test_draws_agree(name, estimator):
    params = PARAMS[name]
    if estimator == PLAIN:
        params = tuple(np.maximum(p, 1.0) if i == 0 else p for i, p in enumerate(params))
    ours, our_grads, rounds = in_torch(name, estimator, params)
    theirs, their_grads = in_jax(name, estimator, params, rounds)
    assert ours.keys() == theirs.keys()
    for part, value in ours.items():
        np.testing.assert_allclose(value, theirs[part], rtol=1e-10, atol=1e-10, err_msg=part)
    for got, expected in zip(our_grads, their_grads, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_densities_and_entropies_agree(name):
    family, params = FAMILIES[name], PARAMS[name]
    ours = in_torch(name, ScoreFunction(), params)[0]["value"]
    log_prob = family.log_prob(torch.as_tensor(ours), *(torch.as_tensor(p) for p in params))
    with jax.enable_x64(True):
        jnp = jax.numpy
        other = jax.jit(family.log_prob, compiler_options=QUICK)(jnp.asarray(ours), *(jnp.asarray(p) for p in params))
        np.testing.assert_allclose(log_prob.numpy(), np.asarray(other), rtol=1e-10, atol=1e-10)
        try:
            entropy = family.entropy(*(torch.as_tensor(p) for p in params))
        except Exception as error:  # a family without one says so in both
            with pytest.raises(type(error)):
                family.entropy(*(jnp.asarray(p) for p in params))
            return
        np.testing.assert_allclose(
            entropy.numpy(),
            np.asarray(jax.jit(family.entropy, compiler_options=QUICK)(*(jnp.asarray(p) for p in params))),
            rtol=1e-10,
            atol=1e-10,
        )
