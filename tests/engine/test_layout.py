"""A mesh of devices gives what one device gives: whatever the sampler, target, prompts and rows."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jax_power_smc as psmc
from jax_power_smc import Ancestral, PowerSMC, PowerTarget, StreamRequest, TableLM
from jax_power_smc import MetropolisHastings as Chains
from jax_power_smc import WithoutReplacement as Swor
from jax_power_smc.core import mesh
from jax_power_smc.engine import executables, slot_plan
from jax_power_smc.engine import layout as mesh_layout
from tests.models import small

pytestmark = pytest.mark.usefixtures("quick_compilation", "x64")

V, CAP = 16, 10
MODEL = TableLM(V)
KEY = jax.random.key(3)
PIECES = [bytes([letter]) for letter in b"abcdefghijklmnop"]
# Ragged, and as many as no number of rows but one divides.
PROMPTS = [[0], [2, 3, 4], [5] * 9, [7, 7], [15]]
ARRAYS = ("tokens", "lengths", "finished", "choice")
REALS = ("log_probs", "log_weights", "log_evidence")
INFO = ("forks", "parent", "resampled", "bad_logits")
INFO += ("drawn_tokens", "model_tokens", "num_rows", "copies")

PLAIN = PowerTarget(2.0, (1,))
SMC = PowerSMC(4, 0.9)
CASES = {
    "smc": (SMC, PLAIN),
    "smc-published-ramp": (
        PowerSMC(4, 0.9, order="published", ramp_tokens=3),
        PowerTarget(2.0, (1,), length="forced_eos"),
    ),
    "smc-truncated": (SMC, PowerTarget(1.5, (1,), top_k=7, top_p=0.9)),
    "smc-one-particle": (PowerSMC(1), PLAIN),
    "swor": (Swor(4, explicit_children=2), PowerTarget(2.0, (1,), min_new_tokens=3)),
    "swor-ramp": (Swor(3, explicit_children=3, ramp_tokens=4, early_stop=0.0), PLAIN),
    "swor-stop": (Swor(4), PowerTarget(2.0, (1,), stop=psmc.StopRegex("[ceg][a-h]"))),
    "mh": (Chains(2, 3, num_chains=3), PLAIN),
    "mh-stop": (Chains(2, 2, num_chains=2), PowerTarget(2.0, (1,), stop=psmc.StopString("g"))),
    "ancestral-stop": (
        Ancestral(0.7, 3),
        PowerTarget(1.0, (1,), min_new_tokens=2, stop=psmc.StopRegex("[a-h]g|jk")),
    ),
    "greedy": (Ancestral(0.0), PLAIN),
}
# Every sampler and every mesh quickly, all pairs of them slowly. "model" devices -> cases.
QUICK = {
    1: (),
    2: ("swor",),
    4: ("smc",),
    8: ("mh-stop",),
}
PAIRS = [
    pytest.param(size, case, marks=[] if case in QUICK[size] else [pytest.mark.pods])
    for size in QUICK
    for case in CASES
]


@functools.cache
def params():
    """Ends are made rarer, so that lengths vary up to the cap."""
    made = MODEL.init(jax.random.key(4), dtype=jnp.float64)
    return made._replace(logits=made.logits.at[..., 1].add(-0.5))


def sample(sampler, target, **options):
    given = {"key": KEY, "max_new_tokens": CAP, "tokenizer": PIECES, **options}
    prompts, model = given.pop("prompts", PROMPTS), given.pop("model", MODEL)
    own = given.pop("params", None)
    return psmc.sample(
        model,
        params() if own is None else own,
        prompts,
        target=target,
        sampler=sampler,
        **given,
    )


@functools.cache
def on_one_device(case):
    return sample(*CASES[case])


def assert_same(found, expected):
    """Equal tokens and ancestors, and weights that differ by the rounding of sums at most."""
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in INFO:
        np.testing.assert_array_equal(
            getattr(found.info, name), getattr(expected.info, name), err_msg=name
        )
    for name in REALS:
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(found.info.ess, expected.info.ess, rtol=1e-10)
    np.testing.assert_allclose(found.info.dropped_mass, expected.info.dropped_mass, atol=1e-10)


@pytest.mark.parametrize(("size", "case"), PAIRS)
def test_a_mesh_gives_what_one_device_gives(size, case):
    assert_same(sample(*CASES[case], mesh=mesh.make_mesh(size)), on_one_device(case))


def test_something_happens_in_these_cases():
    smc, swor = on_one_device("smc"), on_one_device("swor")
    assert smc.info.forks.sum() > 5 and len(set(np.asarray(smc.lengths).ravel().tolist())) > 3
    # Some token of a tail was drawn: it is not among the two most probable ones.
    table = np.asarray(params().logits[0])
    tokens, lengths = np.asarray(swor.tokens), np.asarray(swor.lengths)
    ranks = [
        int((table[before] > table[before, after]).sum())
        for row, length in zip(tokens.reshape(-1, CAP), lengths.ravel(), strict=True)
        for before, after in itertools.pairwise(row[:length])
    ]
    assert max(ranks) > 1
    stopped = on_one_device("ancestral-stop")
    ends = {PIECES[row[n - 1]] for row, n in zip(*map(_flat, (stopped.tokens, stopped.lengths)),
                                                 strict=True)}  # fmt: skip
    assert ends & {b"g", b"k"}
    assert 0 < np.nanmean(on_one_device("mh").info.acceptance_rate) < 1


def _flat(x):
    x = np.asarray(x)
    return x.reshape(-1, *x.shape[2:])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, {"prompts": PROMPTS[:1]}),  # all rows but one are idle
        (1, {"prompts": PROMPTS[:3], "prompts_per_batch": 1}),  # fewer than rows
        (4, {"prompts": PROMPTS * 3, "prompts_per_batch": 2}),  # one slot a row, used again
        pytest.param(
            *(4, {"prompts": PROMPTS * 3, "prompts_per_batch": 16}),  # groups of several of a row
            marks=pytest.mark.pods,
        ),
        pytest.param(*(8, {"prompts": PROMPTS[:1], "max_new_tokens": 1}), marks=pytest.mark.pods),
    ],
)
def test_however_prompts_meet_rows(size, options):
    expected = sample(SMC, PLAIN, **options)
    assert_same(sample(SMC, PLAIN, mesh=mesh.make_mesh(size), **options), expected)


# --- streams ---

TARGETS = [
    PowerTarget(2.0, (1,)),
    PowerTarget(3.0, (0, 1), min_new_tokens=2),
    PowerTarget(2.0, (1,), top_k=2),
    PowerTarget(1.5, (1,), top_p=0.8),
    PowerTarget(2.0, (1,), stop=psmc.StopString("bc")),
    PowerTarget(2.0, (1,), length="forced_eos", stop=psmc.StopRegex("[c-m]d")),
]


def request(i, **changes):
    fields = {
        "prompt": [i % V, (2 * i + 1) % V][: 1 + i % 2],
        "target": TARGETS[i % len(TARGETS)],
        "max_new_tokens": 3 + (4 * i) % 9,
    }
    return StreamRequest(**{**fields, **changes})


@pytest.fixture
def short_chunks(monkeypatch):
    """Many rounds within few steps."""
    monkeypatch.setattr(slot_plan, "CHUNK_ON_CPU", 3)


def make(size, **options):
    """An engine on a mesh with so many "model" devices, or (None) on one device."""
    sizes = {"max_prompt_tokens": 4, "max_new_tokens": 12, "slots": 4, "tokenizer": PIECES}
    where = None if size is None else mesh.make_mesh(size)
    given = {"sampler": SMC, **sizes, **options}
    return psmc.Engine(MODEL, params(), mesh=where, **given)


def by_index(done):
    return {one.index: one for one in done}


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=pytest.mark.pods) for size in (1, 2, 4, 8)]
)
def test_a_stream_of_many_targets(short_chunks, size):
    # Those with a restriction come late: what runs then is widened.
    asked = [request(0), request(1), request(6), request(7), *(request(i) for i in range(14))]
    expected = by_index(make(None).stream(asked, key=KEY))
    found = by_index(make(size).stream(iter(asked), key=KEY))
    assert found.keys() == expected.keys() == set(range(18))
    for index, one in found.items():
        assert one.error is None
        assert_same(one.result, expected[index].result)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.pods)])
def test_a_cancelled_request_stops_no_other_row(short_chunks, size):
    asked = [request(0, prompt=[i], max_new_tokens=12) for i in range(9)]
    expected = by_index(make(None).stream(asked, key=KEY))
    stream = make(size).stream(asked, key=KEY)
    stream.cancel(6)
    done = [next(stream)]
    # One that runs, or has only just ended.
    running = next(i for i in range(4) if i != done[0].index)
    stream.cancel(running)
    found = by_index([*done, *stream])
    assert found.keys() == expected.keys() and found[6].error == "cancelled."
    for index, one in found.items():
        assert one.error is None or index in (6, running)
        if one.error is None:
            assert_same(one.result, expected[index].result)


def test_rows_that_end_early_wait_for_no_other(short_chunks):
    # One row of the mesh has short prompts, the other a long one: it is filled again meanwhile.
    caps = [12, 3, 3, 3, 3]
    asked = [request(0, prompt=[i], max_new_tokens=cap) for i, cap in enumerate(caps)]
    never_end = [dataclasses.replace(one, target=PowerTarget(2.0)) for one in asked]
    order = [one.index for one in make(4, slots=2).stream(never_end, key=KEY)]
    assert order.index(0) > 1
    expected = by_index(make(None, slots=2).stream(never_end, key=KEY))
    for one in make(4, slots=2).stream(never_end, key=KEY):
        assert_same(one.result, expected[one.index].result)


@pytest.mark.pods
def test_warmup_compiles_all_that_a_stream_on_a_mesh_needs():
    # Two buckets of prompts, and two of caches, so that one grows.
    sizes = {"max_prompt_tokens": 100, "max_new_tokens": 300, "slots": 4}
    made = make(2, sampler=Ancestral(1.0, 2), **sizes)
    assert made.warmup() > 0
    # No end tokens in any request: another set of them would be another shape.
    never, other = PowerTarget(1.0), PowerTarget(2.0)
    asked = [
        request(0, target=never, max_new_tokens=300),
        request(1, prompt=[3] * 90, target=other),
        request(2, target=other),
        *(request(i, target=other, prompt=[i]) for i in range(3, 9)),
    ]
    compiled = executables.compiled_count()
    stream = made.stream(asked, key=KEY)
    found = by_index(stream)
    assert executables.compiled_count() == compiled
    expected = by_index(make(None, sampler=Ancestral(1.0, 2), **sizes).stream(asked, key=KEY))
    for index, one in found.items():
        assert_same(one.result, expected[index].result)


def test_a_plan_is_for_one_device_and_slots_are_of_all_shards():
    made = make(2, slots=6)  # 4 rows
    assert made.plan.slots == 2 and made._sizes.slots == 8 and made._sizes.group == 4
    # Logits are what the plan counts most of here; a limit lets in fewer slots of every row.
    small_limit = dataclasses.replace(made.plan, slots=3).total
    wide = make(2, slots=None, memory_limit=small_limit)
    assert wide._sizes.slots == 4 * wide.plan.slots and 1 < wide.plan.slots <= 3
    with pytest.raises(
        ValueError, match=r"64 prompts at a time are too many .* at most (8|12) fit"
    ):
        make(2, slots=64, memory_limit=small_limit)


# --- which meshes, and which models ---


@pytest.mark.parametrize("model", [0, 3, 16, -1, True, 2.0, None])
def test_an_invalid_mesh_size_is_refused(model):
    with pytest.raises(ValueError) as error:
        mesh.make_mesh(model)
    small.assert_one_sentence(error, f"model is {model!r}", "number of devices, 8")


def test_meshes_have_the_devices_in_order():
    assert dict(mesh.make_mesh(2).shape) == {"data": 4, "model": 2}
    some = mesh.make_mesh(2, jax.devices()[2:6])
    assert some.devices.tolist() == [jax.devices()[2:4], jax.devices()[4:6]]
    expected = on_one_device("greedy")
    assert_same(sample(*CASES["greedy"], mesh=some), expected)


@pytest.mark.parametrize("axes", [("x", "y"), ("model", "data"), ("data", "model", "expert")])
def test_a_mesh_with_other_axes_is_refused(axes):
    shape = (4, 2, 1)[: len(axes)]
    other = Mesh(np.array(jax.devices()).reshape(shape), axes)
    with pytest.raises(ValueError) as error:
        sample(SMC, PLAIN, mesh=other)
    small.assert_one_sentence(error, axes[0], "must be a Mesh with axes 'data' and 'model'")


@pytest.mark.parametrize("other", [8, "data", PartitionSpec("data")])
def test_anything_but_a_mesh_is_refused(other):
    with pytest.raises(ValueError) as error:
        make(None).__class__(
            MODEL, params(), sampler=SMC, max_prompt_tokens=4, max_new_tokens=4, mesh=other
        )
    small.assert_one_sentence(error, f"mesh is {other!r}")


def test_a_mesh_made_by_jax_will_do():
    # Its axes are explicit: part of the types of the arrays on it.
    made = jax.make_mesh((4, 2), ("data", "model"))
    assert_same(sample(*CASES["greedy"], mesh=made), on_one_device("greedy"))
    layout = mesh_layout.layout_of(MODEL, made)
    placed = jax.device_put(params(), NamedSharding(made, layout.params(params()).logits))
    assert_same(sample(*CASES["greedy"], params=placed), on_one_device("greedy"))


class Uncut:
    """A model that does not support meshes."""

    vocab_size = V

    def init_cache(self, params, num_rows, capacity):
        return MODEL.init_cache(params, num_rows, capacity)

    def extend(self, params, cache, tokens, position, count):
        return MODEL.extend(params, cache, tokens, position, count)


def test_a_model_that_cannot_be_sharded():
    assert_same(sample(SMC, PLAIN, model=Uncut(), mesh=mesh.make_mesh(1)), on_one_device("smc"))
    for sampler in (SMC, Chains(2, 1)):
        with pytest.raises(ValueError) as error:
            sample(sampler, PLAIN, model=Uncut(), mesh=mesh.make_mesh(4))
        small.assert_one_sentence(error, "4 devices on its axis 'model'", "a Uncut cannot be")


def test_a_table_whose_vocabulary_cannot_be_sharded():
    model = TableLM(10)
    with pytest.raises(ValueError) as error:
        sample(
            SMC,
            PLAIN,
            prompts=[[1]],
            model=model,
            params=model.init(KEY),
            mesh=mesh.make_mesh(4),
        )
    small.assert_one_sentence(error, "4 devices on its axis 'model'", "vocabulary of 10 cannot")


# --- where arrays are ---


def test_parameters_on_a_mesh_bring_their_mesh_along(monkeypatch):
    where = mesh.make_mesh(2)
    layout = mesh_layout.layout_of(MODEL, where)
    placed = layout.put(params(), layout.params(params()))
    assert mesh.mesh_of(placed) == where and mesh.mesh_of(params()) is None
    (leaf,) = jax.tree.leaves(placed)
    assert {shard.data.shape for shard in leaf.addressable_shards} == {(1, V + 1, V // 2)}
    # What is there already is not moved.
    assert layout.put(placed, layout.params(placed)).logits is leaf
    seen = []
    original = executables.executable

    def noted(function, static, args, layout=mesh_layout.ONE_DEVICE):
        seen.append(layout.mesh)
        return original(function, static, args, layout)

    expected = {case: on_one_device(case) for case in ("greedy", "mh")}
    monkeypatch.setattr(executables, "executable", noted)
    for case, one in expected.items():
        assert_same(sample(*CASES[case], params=placed), one)
    assert set(seen) == {where}


def test_parameters_on_another_mesh_are_moved():
    other = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))
    placed = jax.device_put(params(), NamedSharding(other, PartitionSpec()))
    assert mesh.mesh_of(placed) is None
    # From another mesh, and from other places of the same one.
    for own in (
        placed,
        jax.device_put(params(), NamedSharding(mesh.make_mesh(2), mesh.REPLICATED)),
    ):
        found = sample(*CASES["greedy"], params=own, mesh=mesh.make_mesh(2))
        assert_same(found, on_one_device("greedy"))


def test_zeros_are_created_on_their_devices():
    layout = mesh_layout.layout_of(MODEL, mesh.make_mesh(4))
    made = layout.zeros(lambda: jnp.zeros((16, 3)), mesh.PER_DEVICE)
    assert {shard.data.shape for shard in made.addressable_shards} == {(2, 3)}
    assert made.sharding.spec == mesh.PER_DEVICE and not made.any()
    alone = mesh_layout.layout_of(MODEL, None).zeros(lambda: jnp.zeros((16, 3)), mesh.PER_DEVICE)
    assert len(alone.addressable_shards) == 1
