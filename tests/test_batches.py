"""Fits to batches: the posterior of all rows, whatever gives them, in memory that does not grow."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import pathlib
import tempfile

import numpy as np
import pytest

from vi_reparam.errors import ArgumentError
from vi_reparam.fit import loop
from vi_reparam.fit.batches import batches
from vi_reparam.fit.shuffle import SMALL, Permutation
from vi_reparam.numerics.rows import spread

ROOT = pathlib.Path(__file__).parent.parent
NUM, SIZE = 4_000, 200
RNG = np.random.default_rng(5)
X = RNG.normal(size=NUM)
Y = 0.7 * X - 0.3 + RNG.normal(size=NUM)


def line(vr, *, around=True):
    """Regression with known noise, w and b ~ N(0, 10)."""
    host, dist = vr.host, vr.host.dist

    def model(x, y=None, noise=1.0):
        w = host.sample("w", dist.Normal(host.array(0.0), host.array(10.0)))
        b = host.sample("b", dist.Normal(host.array(0.0), host.array(10.0)))
        if not around:
            return host.sample("y", dist.Normal(w * x + b, host.array(noise)).to_event(1), obs=y)
        with host.plate("rows", len(x)):
            host.sample("y", dist.Normal(w * x + b, host.array(noise)), obs=y)

    return model


def exact(x=X, y=Y):
    """Mean, sds and log evidence."""
    design = np.stack([x, np.ones_like(x)], 1)
    precision = design.T @ design + np.eye(2) / 100.0
    mean = np.linalg.solve(precision, design.T @ y)
    log_det = np.linalg.slogdet(100.0 * precision)[1]
    evidence = -0.5 * (len(y) * np.log(2 * np.pi) + log_det + y @ y - mean @ precision @ mean)
    return mean, np.sqrt(np.diagonal(np.linalg.inv(precision))), evidence


class OnDisk:
    """What has a shape, chunks and slices, and no more: as zarr's arrays."""

    def __init__(self, array, chunk):
        self.array, self.shape, self.chunks = array, array.shape, (chunk,)

    def __getitem__(self, part):
        assert isinstance(part, slice)
        return self.array[part]


def loader(x, y):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.as_tensor(x), torch.as_tensor(y))
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(data, batch_size=300, shuffle=True, generator=generator)


def rows_of(x, y, seed=0):
    """A function whose iterators give batches of several sizes, in a new order each time."""
    rng = np.random.default_rng(seed)

    def passes():
        order = rng.permutation(len(x))
        for part in np.array_split(order, 17):
            yield {"x": x[part], "y": y[part]}

    return passes


def endless(passes):
    while True:
        yield from passes()


def sources(folder):
    for name, array in (("x", X), ("y", Y)):
        np.save(folder / name, array)
    mapped = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("x", "y")}
    return {
        "arrays": batches((X, Y), batch_size=SIZE),
        "mapped": batches(mapped, batch_size=SIZE),
        "chunks": batches((OnDisk(X, 150), OnDisk(Y, 150)), batch_size=SIZE),
        "loader": batches(loader(X, Y), batch_size=SIZE),
        "function": batches(rows_of(X, Y), num_rows=NUM, batch_size=SIZE),
        "iterator": batches(endless(rows_of(X, Y)), num_rows=NUM, batch_size=SIZE),
    }


@pytest.fixture(params=("numpyro", "pyro"), scope="module")
def fits(request, tmp_path_factory):
    """A posterior from each source, by one model."""
    pytest.importorskip({"numpyro": "jax", "pyro": "torch"}[request.param])
    vr = importlib.import_module(f"vi_reparam_{request.param}")
    guided = vr.guide(vr.FullRank())(line(vr))
    found = sources(tmp_path_factory.mktemp("rows"))
    options = {"num_steps": 400, "progress": False}
    return vr, {n: guided.fit(s, seed=i, **options) for i, (n, s) in enumerate(found.items())}


def test_each_source_gives_the_posterior_of_all_rows(fits):
    """The fits' own spread is their Monte Carlo error, beside that of draws, whose noise they share: t of six."""
    _, posteriors = fits
    mean, sds, _ = exact()
    draws = [[np.asarray(p.draws(4_000)[name]) for name in ("w", "b")] for p in posteriors.values()]
    off = (np.array([[x.mean() for x in pair] for pair in draws]) - mean) / sds
    assert np.abs(off).max() < 0.3
    t = off.mean(0) / np.sqrt(off.var(0, ddof=1) / len(off) + 1 / 4_000)
    assert np.abs(t).max() < 6.9
    spreads = np.array([[x.std() for x in pair] for pair in draws]) / sds
    assert np.abs(spreads - 1.0).max() < 0.2


def test_the_weights_are_of_all_rows(fits):
    """One pass gives the evidence."""
    _, posteriors = fits
    for name in ("mapped", "chunks", "function", "iterator"):
        value, error = posteriors[name].log_evidence()
        assert abs(value - exact()[2]) < 4.0 * error + 1e-3
        assert posteriors[name].verdict.grade == "good"


def test_what_would_take_the_first_batch_for_all_rows_is_refused(fits):
    _, posteriors = fits
    posterior = posteriors["mapped"]
    for act in (
        posterior.refine,
        lambda: posterior.expectation(lambda z: z["w"], weighted=True),
        lambda: posterior.draws(5, with_weights=True),
    ):
        with pytest.raises(ArgumentError, match="was fitted to batches, and holds the first one alone"):
            act()
    data = posterior.to_arviz(20)
    assert "lp" not in data["sample_stats"] and data["posterior"].attrs["data"] == "of the first batch alone"


def test_such_a_posterior_predicts_and_goes_through_a_file(fits, tmp_path):
    vr, posteriors = fits
    posterior = posteriors["mapped"]
    assert posterior.predict(x=vr.host.array(np.zeros(3)), num_draws=7)["y"].shape == (7, 3)
    again = vr.load(posterior.save(tmp_path / "p.npz"), posterior.guided)
    assert str(again.verdict) == str(posterior.verdict)
    with pytest.raises(ArgumentError, match="its batches are not at hand"):
        again.elbo(50)


def test_a_fit_that_was_cut_off_goes_on(vr, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    guided, options = vr.guide(vr.MeanField())(line(vr)), {"num_steps": 30, "progress": False, "seed": 2}
    whole = guided.fit(batches((X, Y), batch_size=SIZE), **options)

    class Broken(OnDisk):
        def __getitem__(self, part):
            raise OSError("gone")

    broken = batches((X, Y), batch_size=SIZE)
    steps = broken.steps

    def cut_off(seed, first):
        for number, rows in enumerate(steps(seed, first)):
            if number == 20:
                raise OSError("gone")
            yield rows

    monkeypatch.setattr(broken, "steps", cut_off)
    with pytest.raises(OSError, match="gone"):
        guided.fit(broken, checkpoint=tmp_path / "c.npz", **options)
    again = guided.fit(batches((X, Y), batch_size=SIZE), checkpoint=tmp_path / "c.npz", **options)
    np.testing.assert_array_equal(again.losses, whole.losses)
    with pytest.raises(ArgumentError, match="of another fit"):
        guided.fit(batches((X, Y), batch_size=100), checkpoint=tmp_path / "c.npz", **options)


def test_the_default_takes_a_gaussian_and_starts_where_it_is_told(vr):
    guided = vr.guide(line(vr))
    posterior = guided.fit(batches((X, Y), batch_size=SIZE), num_steps=5, progress=False, init={"w": 0.7, "b": -0.3})
    assert posterior.record["family"] == "FullRank()" and "alone" in posterior.why
    assert abs(float(np.asarray(posterior.draws(500)["w"]).mean()) - 0.7) < 0.2
    more = posterior.update(batches((X, Y), batch_size=SIZE), num_steps=5, progress=False)
    assert more.record["batches"] == {"plate": "rows", "num_rows": NUM, "size": SIZE}


def test_a_guide_written_by_hand_takes_batches(vr):
    host, dist = vr.host, vr.host.dist

    def guide(x, y=None):
        for name in ("w", "b"):
            loc = host.param(f"{name}_loc", host.array(0.0))
            host.sample(name, dist.Normal(loc, host.param(f"{name}_sd", host.array(0.1), constraint=positive)))

    positive = dist.constraints.positive
    found = vr.Guided(line(vr), guide).fit(batches((X, Y), batch_size=SIZE), num_steps=5, progress=False)
    assert np.isfinite(found.losses).all() and "batches" in found.record


def local(vr):
    host, dist = vr.host, vr.host.dist

    def model(x, y):
        with host.plate("rows", len(x)):
            z = host.sample("z", dist.Normal(host.array(0.0), host.array(1.0)))
            host.sample("y", dist.Normal(z, host.array(1.0)), obs=y)

    return model


def two_plates(vr):
    host, dist = vr.host, vr.host.dist

    def model(x, y):
        with host.plate("places", SIZE):
            z = host.sample("z", dist.Normal(host.array(0.0), host.array(1.0)))
        with host.plate("rows", len(x)):
            host.sample("y", dist.Normal(z, host.array(1.0)), obs=y)

    return model


def follows(vr):
    host, dist = vr.host, vr.host.dist

    def model(x, y):
        w = host.sample("w", dist.Normal(x.mean(), host.array(1.0)))
        with host.plate("rows", len(x)):
            host.sample("y", dist.Normal(w * x, host.array(1.0)), obs=y)

    return model


def subsampled(vr):
    host, dist = vr.host, vr.host.dist

    def model(x, y):
        w = host.sample("w", dist.Normal(host.array(0.0), host.array(1.0)))
        with host.plate("rows", NUM, subsample_size=SIZE):
            host.sample("y", dist.Normal(w * x, host.array(1.0)), obs=y)

    return model


def arrays(_):
    return (batches((X, Y), batch_size=SIZE),)


@pytest.mark.parametrize(
    ("make", "given", "words"),
    [
        (local, arrays, "'z' is a latent in the plate 'rows', of which a batch holds a part"),
        (two_plates, arrays, "the plates 'places', 'rows' all have the batch's size, 200"),
        (follows, arrays, "'w' depends on the batch and is not in the plate 'rows'"),
        (subsampled, arrays, "plate 'rows' draws a subsample, and its rows come in batches"),
        (lambda vr: line(vr, around=False), arrays, "no plate has the batch's size, 200"),
        (line, lambda _: (batches((X, Y), plate="row"),), "plate='row'.: no plate of that name"),
        (line, lambda _: (X, batches((X, Y))), "give the batches first"),
        (line, lambda _: (batches([(X, Y)], num_rows=NUM + 500, batch_size=SIZE),), "gave 4,000 rows in one pass"),
        (line, lambda _: (batches([(X, Y)] * 2, num_rows=NUM, batch_size=SIZE),), "gave more than 4,000 rows"),
        (line, lambda _: (batches([(X, [Y])], num_rows=NUM),), "a batch is a tuple: expected an array"),
        (line, lambda _: (batches(lambda: iter(()), num_rows=NUM),), "the source of batches is empty"),
    ],
)
def test_what_cannot_be_fitted_batch_by_batch_is_refused(vr, make, given, words):
    with pytest.raises(ArgumentError, match=words) as caught:
        vr.guide(vr.MeanField())(make(vr)).fit(*given(vr), progress=False)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: batches((X, Y[:-1])), "have .4000, 3999. rows"),
        (lambda: batches((X, 3.0)), "give num_rows="),
        (lambda: batches(5), "expected arrays, batches of arrays"),
        (lambda: batches((X, Y), num_rows=7), "the arrays have 4000 rows"),
        (lambda: batches((X, Y), batch_size=0), "batch_size=0.: expected a positive int"),
        (lambda: batches(iter([X])), "give num_rows="),
        (
            lambda: batches(iter([(X[:400], Y[:400])] * 3), num_rows=NUM),
            "ended after 1,200 rows, and num_rows is 4,000",
        ),
        (lambda: batches(iter([np.array([None, 1])]), num_rows=2), "holds Python objects: give arrays of numbers"),
    ],
)
def test_a_source_that_is_none_is_refused(act, words):
    with pytest.raises(ArgumentError, match=words):
        act()


def test_an_iterators_rows_are_kept_in_files_as_long_as_they_are_needed(tmp_path, monkeypatch):
    """The first `num_rows` of them; of batches of several sizes, in their own types."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parts = [{"x": X[:3].astype(np.float32), "i": np.arange(3)}, {"x": X[3:10], "i": np.arange(3, 10)}]
    source = batches(iter(parts), num_rows=8)
    found = source.call(tuple(np.concatenate(column) for column in zip(*source.once(), strict=True)))[1]
    np.testing.assert_array_equal(found["x"], X[:8].astype(np.float32))
    np.testing.assert_array_equal(found["i"], np.arange(8))
    assert source.size == 3 and len(list(tmp_path.glob("*/*"))) == 2
    del source
    gc.collect()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ArgumentError, match=r"cannot write the iterator's rows to .*none: No such file.*set TMPDIR"):
        batches(iter(parts), num_rows=8)


A, B = (X[:200], Y[:200]), (X[200:400], Y[200:400])
OTHER_FORMS = {
    "fewer arrays": (
        [A, B[:1]],
        r"rows float64 of shape \(\), and the first one had float64 of shape \(\), float64 of",
    ),
    "columns": ([A, (B[0][:, None], B[1])], r"rows float64 of shape \(1,\), .*: give batches of one form"),
    "fractions after whole numbers": ([(A[0].astype(int), A[1]), B], "first one had int64 of shape"),
    "other names": ([{"x": A[0], "y": A[1]}, {"x": B[0], "z": B[1]}], "'z': float64 .* first one had 'x': "),
    "no names": ([{"x": A[0], "y": A[1]}, B], "first one had 'x': float64"),
}


@pytest.mark.parametrize("what", OTHER_FORMS)
def test_batches_of_several_forms_are_refused(vr, what):
    parts, words = OTHER_FORMS[what]
    source = batches(lambda: iter(parts), num_rows=400, batch_size=100)
    with pytest.raises(ArgumentError, match=words) as caught:
        vr.guide(vr.MeanField())(line(vr)).fit(source, progress=False, num_steps=8)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_rows_are_told_by_their_names_whatever_their_order():
    """Batches that are joined were joined in the order of each: half of x was y."""
    rows = [{"x": A[0], "y": A[1]}, {"y": B[1], "x": B[0].astype(np.float32)}]
    source = batches(lambda: iter(rows), num_rows=400, batch_size=400)
    args, named = source.call(next(source.steps(0, 0)))
    assert not args and {name: array.dtype for name, array in named.items()} == {"x": X.dtype, "y": Y.dtype}
    np.testing.assert_allclose(named["x"], X[:400], rtol=1e-6)
    np.testing.assert_array_equal(named["y"], Y[:400])


def test_a_pass_gives_each_row_once_whatever_cuts_it():
    for source in (
        batches(X, batch_size=300),
        batches(OnDisk(X, 70), batch_size=300),
        batches([X[:1], X[1:900], X[900:]], num_rows=NUM, batch_size=300),
    ):
        np.testing.assert_array_equal(np.sort(np.concatenate([rows[0] for rows in source.once()])), np.sort(X))
        steps = source.steps(0, 0)
        passed = np.concatenate([next(steps)[0] for _ in range(NUM // 300)])
        assert len(passed) == len(np.unique(passed)) == NUM // 300 * 300


def test_an_order_is_a_permutation_and_uniform():
    """Written down or computed: every number once; where the first goes is uniform, by chi-squared of 15 at 1e-4."""
    for size in (1, 7, SMALL, SMALL + 5):
        order = Permutation(size, 3)(np.arange(size))
        np.testing.assert_array_equal(np.sort(order), np.arange(size))
    first = np.array([Permutation(SMALL + 5, seed)(np.array([7]))[0] for seed in range(3_200)])
    found = np.bincount(first * 16 // (SMALL + 5), minlength=16)
    assert ((found - 200.0) ** 2 / 200.0).sum() < 44.3


@pytest.mark.parametrize(("size", "batch"), [(7, 3), (10, 10), (13, 1)])
def test_a_plates_minibatch_is_without_repetition_and_each_row_as_likely(vr, size, batch):
    ops, num = vr.ops, 4_000
    rows = np.asarray(ops.to_numpy(ops.many(lambda key: spread(ops, key, size, batch), ops.key(1), num)))
    assert (rows >= 0).all() and (rows < size).all()
    assert all(len(set(row)) == batch for row in rows.tolist())
    part = batch / size
    z = (np.bincount(rows.reshape(-1), minlength=size) / num - part) / np.sqrt(max(part * (1 - part), 1e-9) / num)
    assert np.abs(z).max() < 4.0


@pytest.mark.slow  # benchmarks/batches.py, whose figures lie in benchmarks/results
def test_a_million_rows_take_the_memory_and_the_time_of_ten_thousand(vr):
    """Processor time of a step within 10%, the least of several rounds; memory within 40 MB, a quarter of the file."""
    spec = importlib.util.spec_from_file_location("batches", ROOT / "benchmarks" / "batches.py")
    measured = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measured)
    few, many = measured.measure(vr.host.name, (10_000, 1_000_000)).values()
    assert many["ms_per_step"] < 1.1 * few["ms_per_step"]
    assert many["memory_mb"] < few["memory_mb"] + 40.0
    assert many["mean_off_sd"] < 0.1 and many["weights"]["khat"] < 0.5
