"""The bound is a bound: weights of paths against exact moments, evidences and each other."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from harness import BACKENDS, ops_or_skip, quickly

from vi_reparam import ArgumentError, SiteError
from vi_reparam.guides import SDE
from vi_reparam.guides.elements import elements_of
from vi_reparam.sde import (
    MLP,
    Adams,
    Blocks,
    Constant,
    Diagonal,
    DiagonalMixture,
    Drifts,
    Full,
    LowRank,
    UniformLogSNR,
    VarianceExploding,
    kernel_variances,
    network,
    noising,
    simulate,
)
from vi_reparam.sde import latent as latents

VP = UniformLogSNR()
LOG_2PI = math.log(2.0 * math.pi)
BASES = {
    "diagonal": Diagonal(),
    "low_rank": LowRank(2),
    "full": Full(),
    "blocks": Blocks("rows", ((2, 0, 1),)),
    "mixture": DiagonalMixture(3, spread=1.0),
}


def _quadratic_mean(log_weight, dims):
    """The exact mean of a quadratic of standard normals, from its values at the unit points."""
    f = log_weight(np.concatenate([np.zeros((1, dims)), np.eye(dims), -np.eye(dims)]))
    return f[0] + 0.5 * (f[1:] - f[0]).sum()


def _linear_bound(ops, grid, predict, sd, log_target, schedule=VP, xp=np):
    """The exact ELBO in one dimension under a drift that is linear in x."""
    steps = len(grid) - 1
    one = lambda x, row, shared: predict(x, row)  # noqa: E731

    def log_weight(points):
        start, noise = points[:, :1], points[:, 1:].T[:, :, None]
        path = simulate(
            ops,
            Drifts(live=one, frozen=one, shared=lambda x, row: None),
            ops.xp.asarray(start),
            ops.xp.asarray(noise),
            ops.xp.asarray(xp.asarray(sd)[:, None]),
            schedule=schedule,
            grid=grid,
            adams=Adams(),
            tau=Constant(1.0),
            own={},
        )
        return log_target(xp.asarray(path.end)[:, 0]) - xp.asarray(path.log_q)

    return _quadratic_mean(log_weight, steps + 1)


def _normal(mean, variance):
    return lambda x: -0.5 * (x - mean) ** 2 / variance - 0.5 * math.log(2.0 * math.pi * variance)


@pytest.mark.parametrize("schedule", [VP, VarianceExploding()], ids=["preserving", "exploding"])
@pytest.mark.parametrize("steps", [1, 2, 8, 32])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 0.04), (-1.0, 6.0)])
def test_the_gap_of_the_exact_drift_is_the_bases(schedule, steps, mean, variance):
    """Exact conditional means and variances leave what the base misses at the noisy end, at every K."""
    ops, grid = ops_or_skip("numpyro"), schedule.grid(steps)
    end = grid[-1]
    total = schedule.total(end)
    # the data whose noised version at the end is the target, in the end's own units
    own_mean = mean * total / schedule.alpha(end)
    own = (variance * total**2 - schedule.sigma(end) ** 2) / schedule.alpha(end) ** 2

    def marginal(lam):
        return schedule.alpha(lam) ** 2 * own + schedule.sigma(lam) ** 2

    def predict(x, row):
        a, s = row["alpha"], row["sigma"]
        return own_mean + a * own / (a * a * own + s * s) * (x - a * own_mean)

    sd = []
    for low, high in itertools.pairwise(grid):
        keep = noising(schedule, low, high).keep
        sd.append(math.sqrt(marginal(high) - (keep * marginal(high)) ** 2 / marginal(low)))
    found = _linear_bound(ops, grid, predict, sd, _normal(mean, variance), schedule)
    # KL(N(0, V) || N(alpha m, P)) at the first lambda
    v, p, m = schedule.total(grid[0]) ** 2, marginal(grid[0]), schedule.alpha(grid[0]) * own_mean
    mismatch = 0.5 * (v / p + m * m / p - 1.0 - math.log(v / p))
    assert abs(found + mismatch) < 1e-6


@pytest.mark.parametrize("steps", [2, 4, 8])
@pytest.mark.parametrize("variance", [100.0, 1.0, 1e-3])
def test_no_control_exceeds_the_evidence(steps, variance):
    """Adversarial linear controls: the exact ELBO of N(0, variance) stays below log Z = 0."""
    import jax
    import jax.numpy as jnp

    ops, grid = ops_or_skip("numpyro"), VP.grid(steps)
    fixed = [kernel_variances(kind, VP, grid, Constant(1.0)) for kind in ("data", "noise", "ddpm")]
    deviations = np.stack([*np.sqrt(fixed), 0.1 * np.sqrt(fixed[2]), 10.0 * np.sqrt(fixed[2])])
    slopes, shifts = np.asarray([-30.0, -1.0, 0.0, 0.5, 1.0, 3.0, 10.0, 100.0]), np.asarray([0.0, 5.0])

    def bound(slope, shift, sd):
        predict = lambda x, row: slope * row["alpha"] * x + shift  # noqa: E731
        return _linear_bound(ops, grid, predict, sd, _normal(0.0, variance), xp=jnp)

    every = [np.asarray(c) for c in zip(*itertools.product(slopes, shifts, deviations), strict=True)]
    found = np.asarray(jax.jit(jax.vmap(bound))(*every))
    assert found.max() <= 1e-9
    assert found.max() > -60.0  # the search came near enough to mean something


# The whole draw: base, network, path.


def _params(ops, family, size, seed, noise, dtype="float64"):
    """Parameters away from their start."""
    rng = np.random.default_rng(seed)
    kind = getattr(ops.xp, dtype)
    cast = lambda x: ops.xp.asarray(np.asarray(x), dtype=kind)  # noqa: E731
    base = family.base.parameters(ops, ops.key(seed), cast(rng.normal(size=size)), cast(0.5 + rng.random(size)))
    base = {name: cast(np.asarray(p) + noise * rng.normal(size=np.shape(p))) for name, p in base.items()}
    shapes = family.network.shapes(size, family.base.num_components)
    net = {n: cast((d + noise * 0.3) * rng.normal(size=shape)) for n, (shape, d) in shapes.items()}
    ratio = cast(noise * rng.normal(size=(family.num_steps, size)))
    return {"base": base, "net": net, "ratio": ratio, "bend": cast(noise * rng.normal(size=size))}


def _draw(ops, family, params, start, noise, *, component=None, target=None, slope=None):
    grid = family.schedule.grid(1)
    residual = latents.MLPResidual(ops, family.network, params["net"], (grid[0], grid[-1]), component)
    ratio = params["ratio"] if family.variance == "learned" else None
    return latents.draw(
        ops,
        family,
        params["base"],
        ratio,
        residual,
        start,
        noise,
        component=component,
        bend=params["bend"],
        target=target,
        slope=slope,
    )


def _jax_draws(family, num, size, seed, log_p):
    """A function of parameters: log w, log q and score terms of `num` draws, one vmapped program."""
    import jax
    import jax.numpy as jnp

    ops = ops_or_skip("numpyro")

    def one(params, key):
        a, b, c = jax.random.split(key, 3)
        count = family.base.num_components
        index = jax.random.randint(c, (), 0, count)
        made = _draw(
            ops,
            family,
            params,
            jax.random.normal(a, (size,)),
            jax.random.normal(b, (family.num_steps, size)),
            component=jax.nn.one_hot(index, count, dtype=jnp.float64) if count > 1 else None,
            target=log_p if family.network.target != "off" else None,
            slope=jax.grad,
        )
        return log_p(made.value) - made.log_q, made.score_term, made.value

    keys = jax.random.split(jax.random.key(seed), num)
    return lambda params: jax.vmap(lambda key: one(params, key))(keys)


def _log_gaussian(x):
    import jax.numpy as jnp

    mean, scale = jnp.asarray([0.5, -1.0, 0.2]), jnp.asarray([0.6, 1.0, 0.4])
    return jnp.sum(-0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * LOG_2PI) + 1.25  # log Z = 1.25


PATHS = ((1, VP), (5, VP), (32, VP), (5, VarianceExploding()))


@pytest.mark.parametrize(
    ("parameterization", "kind", "paths"),
    [  # every path from one base, and every base by one path; all of them where there is time
        ("data", "diagonal", PATHS),
        *(("data", kind, PATHS[1:2]) for kind in ("low_rank", "blocks", "mixture")),
        *(pytest.param("data", k, PATHS, marks=pytest.mark.slow) for k in BASES if k != "diagonal"),
        *(
            pytest.param(p, kind, PATHS, marks=pytest.mark.slow)
            for p in ("noise", "score", "velocity")
            for kind in BASES
        ),
    ],
    ids=lambda v: f"{len(v)} paths" if isinstance(v, tuple) else v,
)
def test_the_start_is_the_base(kind, parameterization, paths):
    """With r = 0 and the DDPM variance every path's weight is the base's own, so the ELBO is too."""
    import jax

    ops = ops_or_skip("numpyro")
    log_ratio = quickly(
        ops, jax.vmap(lambda base, v: _log_gaussian(v) - BASES[kind].log_prob(ops, base, v), in_axes=(None, 0))
    )
    for steps, schedule in paths:
        family = SDE(parameterization=parameterization, base=BASES[kind], num_steps=steps, schedule=schedule)
        params = _params(ops, family, 3, 0, 0.0)
        base_noise = _params(ops, family, 3, 1, 0.4)["base"]
        zero = {n: (0.0 * p if n in ("out", "bias_out", "gate_out") else p) for n, p in params["net"].items()}
        params = {**params, "net": zero, "base": base_noise}
        log_w, _, z = quickly(ops, _jax_draws(family, 20, 3, 0, _log_gaussian))(params)
        exact = log_ratio(base_noise, z)
        assert np.allclose(log_w, exact, rtol=1e-9, atol=1e-9)


def _near(ops, params):
    """The same with a base about the target, a little wider, so that the weights have a variance."""
    loc, scale = np.asarray([0.5, -1.0, 0.2]), 1.2 * np.asarray([0.6, 1.0, 0.4])
    shape = np.shape(params["base"]["loc"])
    rng = np.random.default_rng(0)
    moved = np.broadcast_to(loc, shape) + (0.2 * scale * rng.normal(size=shape) if len(shape) > 1 else 0.0)
    own = {"loc": moved, "log_scale": np.broadcast_to(np.log(scale), shape)}
    return {**params, "base": {**params["base"], **{name: ops.xp.asarray(p) for name, p in own.items()}}}


@pytest.mark.parametrize(
    ("variance", "kind"),
    [  # the other bases go there and back, and start as they must
        pytest.param(v, k, marks=() if v == "learned" and k in ("full", "mixture") else pytest.mark.slow)
        for v in ("learned", "ddpm")
        for k in BASES
    ],
)
def test_weights_average_to_the_evidence(kind, variance):

    ops = ops_or_skip("numpyro")
    family = SDE(base=BASES[kind], variance=variance, num_steps=6, network=MLP(width=8))
    params = _near(ops, _params(ops, family, 3, 3, 0.05))
    if variance == "learned":  # wider than it must be: weights of a narrow kernel have no variance
        params["ratio"] = abs(params["ratio"])
    log_w, _, _ = quickly(ops, _jax_draws(family, 100_000, 3, 5, _log_gaussian), optimized=True)(params)
    w = np.exp(np.asarray(log_w) - 1.25)
    error = w.std() / len(w) ** 0.5
    assert error < 0.03
    assert abs(w.mean() - 1.0) < 3.0 * error
    assert np.mean(log_w) < 1.25


@pytest.mark.parametrize("adams", [Adams(order=2), pytest.param(Adams(form="noise"), marks=pytest.mark.slow)])
def test_other_steps_keep_the_evidence(adams):

    ops = ops_or_skip("numpyro")
    family = SDE(base=Diagonal(), solver=adams, variance="noise", num_steps=48, network=MLP(width=8))
    params = _near(ops, _params(ops, family, 3, 3, 0.02))
    log_w, _, _ = quickly(ops, _jax_draws(family, 100_000, 3, 5, _log_gaussian), optimized=True)(params)
    w = np.exp(np.asarray(log_w) - 1.25)
    error = w.std() / len(w) ** 0.5
    assert error < 0.05 and abs(w.mean() - 1.0) < 3.0 * error


# Gradients.


def _flat(tree):
    import jax

    return np.concatenate([np.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize(
    "kind", ["diagonal", *(pytest.param(k, marks=pytest.mark.slow) for k in BASES if k != "diagonal")]
)
def test_the_three_gradients_have_one_mean(kind):
    import jax

    ops = ops_or_skip("numpyro")
    network = MLP(width=3, depth=1, frequencies=1, target="off")
    family = SDE(base=BASES[kind], num_steps=2, network=network)
    params = _params(ops, family, 3, 7, 0.1)
    groups, num = 300, 100
    means, errors = {}, {}
    for shift, gradient in enumerate(("path", "reparameterization", "log_variance")):
        chosen = dataclasses.replace(family, gradient=gradient)

        def loss(params, seed, chosen=chosen, gradient=gradient):
            log_w, score, _ = _jax_draws(chosen, num, 3, seed, _log_gaussian)(params)
            value = log_w.mean()
            if gradient == "log_variance":
                f = jax.lax.stop_gradient(log_w)
                centred = (f - f.mean()) * num / (num - 1)
                value = value + (centred * (score - jax.lax.stop_gradient(score))).mean()
            return value

        seeds = np.arange(groups) + shift * groups
        grads = jax.jit(lambda params, loss=loss, s=seeds: jax.lax.map(lambda k: jax.grad(loss)(params, k), s))
        flat = _flat(grads(params))
        means[gradient], errors[gradient] = flat.mean(0), flat.std(0, ddof=1) / groups**0.5
    for other in ("reparameterization", "log_variance"):
        error = np.sqrt(errors["path"] ** 2 + errors[other] ** 2)
        moved = error > 1e-12
        assert np.abs((means["path"] - means[other])[moved] / error[moved]).max() < 4.5
        assert np.abs(means["path"][moved] / error[moved]).max() > 30.0  # so that a missing term would show


def test_the_path_gradient_vanishes_at_the_target():
    import jax
    import jax.numpy as jnp

    ops = ops_or_skip("numpyro")
    family = SDE(base=Diagonal(), num_steps=4, network=MLP(width=4, target="off"))
    params = _params(ops, family, 3, 0, 0.0)
    net = {n: (0.0 * p if n in ("out", "bias_out") else p) for n, p in params["net"].items()}
    params = {**params, "net": net}
    base = params["base"]

    def log_p(z):
        return jnp.asarray(Diagonal().log_prob(ops, base, z))

    for gradient, still in (("path", True), ("reparameterization", False)):
        chosen = dataclasses.replace(family, gradient=gradient)
        grads = jax.jit(jax.grad(lambda p, chosen=chosen: _jax_draws(chosen, 4, 3, 0, log_p)(p)[0].sum()))(params)
        drift = jax.tree.leaves([grads["net"], grads["ratio"]])
        largest = max(float(jnp.abs(g).max()) for g in drift)
        assert (largest < 1e-9) == still


@pytest.mark.parametrize(
    "gradient", ["path", *(pytest.param(g, marks=pytest.mark.slow) for g in ("reparameterization", "log_variance"))]
)
@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_checkpointing_changes_no_gradient(gradient, order):
    import jax

    ops = ops_or_skip("numpyro")
    family = SDE(base=Diagonal(), num_steps=5, gradient=gradient, solver=Adams(order=order), network=MLP(width=8))
    params = _params(ops, family, 3, 2, 0.1)

    def loss(params, chosen):
        log_w, score, _ = _jax_draws(chosen, 4, 3, 0, _log_gaussian)(params)
        return (log_w if score is None else score * jax.lax.stop_gradient(log_w)).sum()

    plain, saved = (
        jax.jit(jax.grad(loss), static_argnums=1)(params, dataclasses.replace(family, checkpoint=checkpoint))
        for checkpoint in (False, True)
    )
    pairs = list(zip(jax.tree.leaves(plain), jax.tree.leaves(saved), strict=True))
    assert all(np.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in pairs)
    assert any(float(abs(a).max()) > 1e-3 for a, _ in pairs)


@pytest.mark.slow
def test_checkpointing_cuts_memory():
    """Peak memory of the gradient of 2,000 paths of 128 steps, by the compiler's own account."""
    import jax

    ops = ops_or_skip("numpyro")
    peak = {}
    for checkpoint in (False, True):
        family = SDE(base=Diagonal(), num_steps=128, checkpoint=checkpoint, network=MLP(target="off"))
        params = _params(ops, family, 10, 0, 0.1, "float32")
        loss = lambda p, family=family: _jax_draws(family, 2_000, 10, 0, lambda z: -0.5 * (z * z).sum())(p)[0].sum()  # noqa: E731
        memory = jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis()
        peak[checkpoint] = memory.temp_size_in_bytes
    assert peak[False] > 8.0 * peak[True]


# Both backends.


OPTIONS = ({}, {"parameterization": "noise", "variance": "noise"}, {"solver": Adams(order=3)})


@pytest.mark.parametrize(
    ("options", "kind"),
    [  # options and bases each once; every pair where there is time
        pytest.param(options, kind, marks=pytest.mark.slow if options and kind != "diagonal" else ())
        for options in OPTIONS
        for kind in BASES
    ],
)
def test_backends_agree_on_log_weights_and_gradients(kind, options):
    import jax
    import torch

    def torch_slope(fn):
        def slope(x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(fn(x), x)[0]

        return slope

    size, found = 3, {}
    family = SDE(base=BASES[kind], num_steps=6, network=MLP(width=8), **options)
    rng = np.random.default_rng(0)
    start, noise = rng.normal(size=size), rng.normal(size=(6, size))
    reference = _params(ops_or_skip("numpyro"), family, size, 1, 0.2)
    chosen = np.eye(3)[1] if kind == "mixture" else None
    for backend in BACKENDS:
        ops = ops_or_skip(backend)
        xp = ops.xp
        log_p = lambda z, xp=xp: xp.sum(-0.5 * (z - 0.3) * (z - 0.3) - 0.25 * xp.sin(2.0 * z))  # noqa: E731
        cast = lambda tree, xp=xp: jax.tree.map(lambda leaf, xp=xp: xp.asarray(np.array(leaf)), tree)  # noqa: E731
        params = cast(reference)

        def weight(params, ops=ops, cast=cast, log_p=log_p, backend=backend):
            made = _draw(
                ops,
                family,
                params,
                cast(start),
                cast(noise),
                component=None if chosen is None else cast(chosen),
                target=log_p,
                slope=jax.grad if backend == "numpyro" else torch_slope,
            )
            return log_p(made.value) - made.log_q

        if backend == "numpyro":
            value, grads = quickly(ops, jax.value_and_grad(weight))(params)
            leaves = jax.tree.leaves(grads)
        else:
            params = jax.tree.map(lambda p: p.requires_grad_(), params)
            value = weight(params)
            flat = jax.tree.leaves(params)
            grads = torch.autograd.grad(value, flat, allow_unused=True)
            leaves = [torch.zeros_like(p) if g is None else g for p, g in zip(flat, grads, strict=True)]
            value = value.detach()
        found[backend] = float(value), [np.asarray(g) for g in leaves]
    (a, ga), (b, gb) = (found[backend] for backend in BACKENDS)
    assert abs(a - b) < 1e-10 * max(1.0, abs(a))
    assert all(np.allclose(x, y, rtol=1e-8, atol=1e-8) for x, y in zip(ga, gb, strict=True))


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bases_go_there_and_back(backend, kind):
    ops = ops_or_skip(backend)
    rng = np.random.default_rng(0)
    base = Blocks("rows", ((3, 0), (1, 2))) if kind == "blocks" else BASES[kind]
    family = SDE(base=base)
    params = _params(ops, family, 4, 0, 0.5)["base"]
    if kind == "mixture":
        params = family.base.component(ops, params, ops.xp.asarray(np.eye(3)[2]))
    for shape in ((4,), (5, 4)):
        x = ops.xp.asarray(rng.normal(size=shape))
        z = family.base.to_latent(ops, params, x)
        assert np.allclose(family.base.standardize(ops, params, z), x, rtol=1e-9, atol=1e-9)
    matrix = np.stack([np.asarray(family.base.to_latent(ops, params, ops.xp.asarray(e))) for e in np.eye(4)])
    matrix = matrix - np.asarray(params["loc"])
    assert math.isclose(float(family.base.log_det(ops, params)), np.linalg.slogdet(matrix)[1], rel_tol=1e-9)


def test_the_elements_of_a_plate():
    """Of a site with another plate around it and an event, and of one with neither."""
    plates = [SimpleNamespace(name="out", dim=-2), SimpleNamespace(name="own", dim=-1)]
    wide = SimpleNamespace(name="wide", shape=(4, 3, 5), event_dim=1, plates=plates)  # a simplex: 4 free coordinates
    plain = SimpleNamespace(name="plain", shape=(3,), event_dim=0, plates=plates[1:])
    parts = [
        SimpleNamespace(site=wide, shape=(4, 3, 4), offset=0),
        SimpleNamespace(site=plain, shape=(3,), offset=48),
    ]
    first = np.arange(48).reshape(4, 3, 4)
    expected = [(*first[:, i].ravel(), 48 + i) for i in range(3)]
    assert elements_of(parts, "own") == tuple(tuple(int(k) for k in row) for row in expected)
    with pytest.raises(SiteError, match=r"'plain' is not in that plate, but in \['own'\]"):
        elements_of(parts, "out")


@pytest.mark.parametrize(
    "options",
    [
        {"parameterization": "flow"},
        {"variance": "wide"},
        {"num_steps": 0},
        {"base": "cauchy"},
        {"base": Blocks},
        {"gradient": "score"},
        {"solver": 2},
        {"solver": Adams(corrector=2)},
        {"tau": 0.0, "variance": "data"},
        {"tau": "much"},
        {"network": 3},
        {"schedule": "linear"},
        {"warm_start": -1},
        {"init_scale": 0.0},
    ],
)
def test_bad_specifications(options):
    with pytest.raises(ArgumentError, match=r"expected|no tractable|no density"):
        SDE(**options)


@dataclasses.dataclass(frozen=True)
class Laid:
    """A vector of two elements of a plate, by turns."""

    size: int

    def elements(self, plate):
        return tuple(tuple(range(i, self.size, 2)) for i in range(2))


def test_specifications_are_plain():
    assert SDE() == SDE() and hash(SDE()) == hash(SDE())
    assert SDE(base="low_rank").base == LowRank()
    assert SDE().resolve(Laid(100)).base == Full() and SDE().resolve(Laid(101)).base == LowRank(8)
    assert SDE(base="diagonal").resolve(Laid(101)).base == Diagonal()
    assert SDE(base=Blocks("rows")).resolve(Laid(4)).base == Blocks("rows", ((0, 2), (1, 3)))
    assert "parameterization='noise'" in repr(SDE(parameterization="noise"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_path_far_out_does_not_run_away(backend):
    """The network's part of the drift has a ceiling, so that a far point is not driven further at every step."""
    ops = ops_or_skip(backend)
    spec = MLP(width=8, target="off")
    params = _params(ops, SDE(network=spec, base="diagonal"), 3, 0, 1.0)["net"]
    row = {"hidden": ops.xp.asarray(np.zeros(8))}
    near, far, further = (
        np.asarray(network.apply(ops, spec, params, ops.xp.asarray(np.full(3, x)), row)) for x in (1.0, 1e3, 1e6)
    )
    assert np.allclose(far, further, rtol=1e-2) and not np.allclose(near, far, rtol=0.5)
