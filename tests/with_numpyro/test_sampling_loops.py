"""What the sampling loops promise: the same key, the same draws, whatever surrounds a lane; nothing hidden."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import vi_reparam_numpyro as vr
from vi_reparam.samplers import LogGamma, RejectionSampler, VonMisesDeviation, accepted_noise
from vi_reparam_numpyro.ops import noise, retry
from vi_reparam_numpyro.ops.compaction import first_set

KEYS = {
    "threefry": lambda seed: jax.random.key(seed),
    "raw": lambda seed: jax.random.PRNGKey(seed),
    "rbg": lambda seed: jax.random.key(seed, impl="rbg"),
}


class Rare(RejectionSampler):
    """Accepts one proposal in three, whatever its parameter: many more rejections than a buffer has places."""

    noise = "uniform"
    max_rounds = 400

    def transform(self, noise, *params):
        return noise

    def log_proposal(self, value, *params):
        return 0.0 * value

    def log_target(self, value, *params):
        return 0.0 * value

    def log_bound(self, *params):
        return np.log(3.0) + 0.0 * params[0]


class Never(Rare):
    max_rounds = 3

    def log_accept(self, noise, *params):
        return jnp.where(params[0] > 0.0, -jnp.inf, 0.0)


@pytest.mark.parametrize("num", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 32)), 33, 70_001])
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_first_set_is_nonzero(num, share):
    flags = np.random.default_rng(num).random(num) < share
    for most in (7, num):
        found = first_set(jnp.asarray(flags), most)
        every = np.append(np.flatnonzero(flags), np.full(most, num))
        np.testing.assert_array_equal(found, every[:most])


def test_normals_are_the_quantiles_of_their_words():
    word = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64)
    edges = np.concatenate([np.arange(500), 2**32 - 1 - np.arange(500), 2**31 + np.arange(-500, 500)])
    word = np.concatenate([word, edges.astype(np.uint64)]).astype(np.uint32)
    signed = word.astype(np.int32).astype(np.int64)
    size = np.where(signed < 0, ~signed, signed)
    x, rest = (size + 0.5) / 2**31, (2**31 - 1 - size + 0.5) / 2**31
    exact = np.sqrt(2.0) * np.where(x < 0.5, special.erfinv(x), special.erfcinv(rest)) * np.where(signed < 0, -1, 1)
    np.testing.assert_allclose(jax.jit(noise.normal_of)(jnp.asarray(word)), exact, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("keys", KEYS)
def test_uniforms_lie_in_0_1_and_normals_are_finite(keys, dtype):
    key = KEYS[keys](3)
    u = noise.uniform(key, (100_000,), dtype)
    assert u.dtype == dtype and u.min() > 0.0 and u.max() <= 1.0
    assert stats.kstest(np.asarray(u, float), "uniform").pvalue > 1e-4
    z = noise.normal(key, (100_000,), dtype)
    assert z.dtype == dtype
    assert stats.kstest(np.asarray(z, float), "norm").pvalue > 1e-4


def test_the_extreme_words_give_uniforms_in_0_1(monkeypatch):
    extremes = jnp.asarray([0, 2**32 - 1], jnp.uint32)
    monkeypatch.setattr(noise, "words", lambda key, shape: jnp.broadcast_to(extremes, shape))
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        low, high = noise.uniform(None, (2,), dtype)
        assert 0.0 < low < 1e-4 and high <= 1.0
        assert np.isfinite(np.asarray(noise.normal(None, (2,), dtype), float)).all()


@pytest.mark.parametrize(
    ("keys", "num"), [("threefry", 50), ("threefry", 20_000), ("threefry", 300_000), ("raw", 50), ("rbg", 20_000)]
)
def test_a_lane_does_not_see_the_others(keys, num):
    a = jnp.exp(jax.random.normal(jax.random.key(0), (num,), jnp.float32))
    others = jnp.where(jnp.arange(num) % 7 == 0, a, 1e-3)
    key = KEYS[keys](1)
    one, two = vr.random.log_gamma(key, a, dtype=jnp.float32), vr.random.log_gamma(key, others, dtype=jnp.float32)
    np.testing.assert_array_equal(one[::7], two[::7])
    assert not np.any(one == vr.random.log_gamma(KEYS[keys](2), a, dtype=jnp.float32))


def _noise(sampler, *params):
    shape = params[0].shape
    return jax.jit(lambda key: accepted_noise(vr.ops, key, sampler, shape, *params))(jax.random.key(5))


@pytest.mark.parametrize(
    ("buffer", "sampler"),  # buffers within buffers, and one
    [
        (100, LogGamma(1)),
        pytest.param(100, VonMisesDeviation(), marks=pytest.mark.slow),
        (100, Rare()),
        pytest.param(65_536, LogGamma(1), marks=pytest.mark.slow),
        (65_536, VonMisesDeviation()),
        pytest.param(65_536, Rare(), marks=pytest.mark.slow),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, RejectionSampler) else repr(v),
)
def test_compaction_gives_what_full_width_rounds_give(sampler, buffer, monkeypatch):
    params = jnp.geomspace(0.01, 100.0, 40_000)
    monkeypatch.setattr(retry, "BUFFER", buffer)
    monkeypatch.setattr(retry, "WHOLE", 500)
    compacted = _noise(sampler, params)
    monkeypatch.setattr(retry, "WHOLE", 10**9)
    # To the last bits: XLA contracts multiplications and additions as the loop's shape has it.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-14)
    jax.tree.map(same, compacted, _noise(sampler, params))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(compacted))


@pytest.mark.parametrize("num", [100, 40_000])
def test_exhaustion_is_reported(num):
    never = jnp.arange(num) % 3 == 0
    found = _noise(Never(), jnp.where(never, 1.0, 0.0))
    np.testing.assert_array_equal(np.isnan(found), never)


def test_an_empty_batch_and_a_scalar():
    assert vr.random.gamma(jax.random.key(0), jnp.zeros((0, 3))).shape == (0, 3)
    assert vr.random.gamma(jax.random.key(0), 2.0).shape == ()


@pytest.mark.parametrize("num", [pytest.param(100, marks=pytest.mark.slow), 20_000])
def test_under_vmap_scan_and_shard_map(num):
    a = jnp.linspace(0.1, 5.0, num)
    keys = jax.random.split(jax.random.key(0), 3)

    def draw(key, a):
        return jax.value_and_grad(lambda a: vr.random.gamma(key, a).sum())(a)

    once = jax.jit(draw)
    alone = [once(key, a) for key in keys]
    drawn = jax.jit(lambda key, a: vr.random.gamma(key, a))(keys[0], a)
    alone = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-12)
    jax.tree.map(same, jax.jit(jax.vmap(draw, (0, None)))(keys, a), alone)
    jax.tree.map(same, jax.lax.scan(lambda _, key: (None, draw(key, a)), None, keys)[1], alone)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    for specs in ((jax.sharding.PartitionSpec(), spec), (spec, jax.sharding.PartitionSpec())):

        def shard(keys, a):
            return vr.random.gamma(keys.reshape(-1)[0], a)

        found = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=spec))(keys[:1], a)
        same(found, drawn)


def test_drawing_alone_computes_no_slope():
    """The slope is the one thing here that takes an exponential of every node: a draw has no need of it."""

    def exponentials(f):
        return jax.jit(f).lower(jnp.ones(20_000)).compile().as_text().count(" exponential(")

    key = jax.random.key(0)
    drawn = exponentials(lambda a: vr.random.log_gamma(key, a))
    assert exponentials(lambda a: jax.jvp(lambda a: vr.random.log_gamma(key, a), (a,), (a,))[1]) > drawn + 10


def test_nothing_recompiles_between_calls_of_one_shape():
    traces = []

    @jax.jit
    def draw(key, a):
        traces.append(1)
        return vr.random.gamma(key, a)

    for seed in range(3):
        draw(jax.random.key(seed), jnp.full(50, 1.0 + seed))
    assert len(traces) == 1


@functools.partial(jax.jit, static_argnums=1)
def _log_gammas(a, dtype):
    return vr.random.log_gamma(jax.random.key(11), a, (100_000,), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("a", [1e-3, 0.5, 1.0, 3.0, 1e8])
def test_log_draws_follow_their_law(a, dtype):
    log_z = np.asarray(_log_gammas(a, dtype), float)
    assert stats.kstest(log_z, stats.loggamma(a).cdf if a < 1e6 else functools.partial(_large, a)).pvalue > 1e-4


def _large(a, log_z):
    return special.gammainc(a, np.exp(log_z))


def test_children_of_a_key_are_independent():
    keys = jax.random.split(jax.random.key(2), 2)
    first, second = (np.asarray(vr.random.log_gamma(key, 0.7, (200_000,))) for key in keys)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.0 / np.sqrt(first.size)
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 4.0 / np.sqrt(first.size)


@jax.jit
def _betas(a, b):
    return jax.jvp(lambda a: vr.random.beta(jax.random.key(6), a, b, dtype=jnp.float32), (a,), (jnp.ones_like(a),))


@pytest.mark.parametrize(("a", "b"), [(1e-3, 2e-3), (0.4, 1e-3), (2.0, 0.3), (1e6, 3e6)])
def test_single_precision_betas(a, b):
    num = 100_000
    x, slope = _betas(jnp.full((num,), a, jnp.float32), jnp.asarray(b, jnp.float32))
    a, b = float(np.float32(a)), float(np.float32(b))
    assert x.dtype == jnp.float32 and x.min() > 0.0 and x.max() < 1.0
    assert jnp.isfinite(slope).all() and (slope >= 0.0).all()
    # The mean moves as the mean does; held at either edge, a draw moves with what is left of it.
    exact = b / (a + b) ** 2
    assert abs(np.mean(slope, dtype=float) - exact) < 4.0 * np.std(slope, dtype=float) / np.sqrt(num)
    # Up to 0.99, above which 24 bits leave few places; at the smallest number is what is held there.
    tiny, x, law = float(jnp.finfo(jnp.float32).smallest_normal), np.asarray(x, float), stats.beta(a, b)
    low, high = law.cdf(tiny), law.cdf(0.99)
    assert stats.binomtest(int((x <= tiny).sum()), num, low).pvalue > 1e-4
    inside = x[(x > tiny) & (x < 0.99)]
    assert stats.binomtest(inside.size, num, high - low).pvalue > 1e-4
    assert stats.kstest((law.cdf(inside) - low) / (high - low), "uniform").pvalue > 1e-4
