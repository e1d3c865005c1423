"""The reader of compiled programs, on texts as compilers for GPU and TPU write them."""

import jax
import jax.numpy as jnp
import pytest

from jax_power_smc.benchmarks import hlo

GPU = """\
HloModule jit_chunk, is_scheduled=true

%fused_update (param_0: f32[4,64,8], param_1: f32[4,8], param_2: s32[]) -> f32[4,64,8] {
  %param_0 = f32[4,64,8]{2,1,0} parameter(0)
  %param_1 = f32[4,8]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  %bitcast.1 = f32[4,1,8]{2,1,0} bitcast(%param_1)
  ROOT %update = f32[4,64,8]{2,1,0} dynamic-update-slice(%param_0, %bitcast.1, %param_2), m={n="a (b)"}
}

%fused_slice (param_0: f32[4,64,8], param_1: s32[]) -> f32[4,8] {
  %param_0 = f32[4,64,8]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %bitcast.2 = f32[4,64,8]{2,1,0} bitcast(%param_0)
  %slice = f32[4,1,8]{2,1,0} dynamic-slice(%bitcast.2, %param_1), dynamic_slice_sizes={4,1,8}
  ROOT %negate = f32[4,8]{1,0} negate(%slice)
}

%fused_read (param_0: f32[4,64,8]) -> f32[4] {
  %param_0 = f32[4,64,8]{2,1,0} parameter(0)
  %inner = f32[4,64,8]{2,1,0} fusion(%param_0), kind=kLoop, calls=%passes
  ROOT %sum = f32[4]{0} reduce(%inner), dimensions={1,2}, to_apply=%add
}

%passes (param_0: f32[4,64,8]) -> f32[4,64,8] {
  %param_0 = f32[4,64,8]{2,1,0} parameter(0)
  ROOT %bitcast.3 = f32[4,64,8]{2,1,0} bitcast(%param_0)
}

%inside (arg: (f32[4,64,8], s32[])) -> (f32[4,64,8], s32[]) {
  %arg = (f32[4,64,8]{2,1,0}, s32[]) parameter(0)
  %cache = f32[4,64,8]{2,1,0} get-tuple-element(%arg), index=0
  %at = s32[] get-tuple-element(%arg), index=1
  %read = f32[4,8]{1,0} fusion(%cache, %at), kind=kLoop, calls=%fused_slice
  %written = f32[4,64,8]{2,1,0} fusion(%cache, %read, %at), kind=kLoop, calls=%fused_update
  %all = f32[4]{0} fusion(%written), kind=kInput, calls=%fused_read
  %again = f32[4,64,8]{2,1,0} copy(%written)
  %kernel = (f32[4,8], f32[4,64,8]) custom-call(%read, %again), output_to_operand_aliasing={{1}: (1, {})}, x={}}
  ROOT %out = (f32[4,64,8]{2,1,0}, s32[]) tuple(%again, %at)
}

%go_on (arg: (f32[4,64,8], s32[])) -> pred[] {
  %arg = (f32[4,64,8]{2,1,0}, s32[]) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (p: f32[4,64,8], at: s32[]) -> (f32[4,64,8], s32[]) {
  %p = f32[4,64,8]{2,1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  %start = (f32[4,64,8]{2,1,0}, /*index=1*/s32[]) tuple(%p, %at.1)
  ROOT %loop = (f32[4,64,8], s32[]) while(%start), condition=%go_on, body=%inside, x={"known_trip_count":{"n":"3"}}
}
"""  # noqa: E501
LEAF = 4 * 64 * 8 * 4


@pytest.fixture(scope="module")
def gpu():
    return hlo.parse(GPU)


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("cache", 0, 0),
        ("read", 4 * 8 * 4 + 4, 4 * 8 * 4),  # a slice
        ("written", 4 * 8 * 4 + 4, 4 * 8 * 4),  # in place
        ("all", LEAF, 4 * 4),  # the whole of it, through a fusion that returns it
        ("again", LEAF, LEAF),
        ("kernel", 4 * 8 * 4, 4 * 8 * 4),  # its second result takes the operand's place
    ],
)
def test_what_an_instruction_moves(gpu, name, read, written):
    assert gpu.traffic("inside", name) == (read, written)


def test_places_are_reached_with_their_callers(gpu):
    assert [(p.name, [how for _, how in p.path]) for p in gpu.places()] == [
        ("main", []),
        ("go_on", ["condition"]),
        ("inside", ["body"]),
    ]
    assert gpu.computations["main"]["loop"].trips == 3


def test_arrays_of_a_tuple_with_comments(gpu):
    assert [str(a) for a in gpu.computations["main"]["start"].arrays] == ["f32[4,64,8]", "s32[]"]


TPU = """\
ENTRY %main.1 (p: bf16[3,300]) -> f32[3,300] {
  %p = bf16[3,300]{1,0:T(8,128)(2,1)} parameter(0)
  %narrow = bf16[3,300]{0,1:T(8,128)(2,1)} copy(%p), backend_config={"estimated_cycles":"77"}
  %fast = (bf16[3,300]{1,0:T(8,128)(2,1)S(1)}, bf16[3,300]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%p)
  %there = bf16[3,300]{1,0:T(8,128)(2,1)S(1)} copy-done(%fast)
  %part = ((bf16[3,300]{1,0:T(8,128)(2,1)}), bf16[3,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:3], [0:128]}
  ROOT %wide = f32[3,300]{1,0:T(8,128)} convert(%there)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        # Rows are padded to tiles of 8 x 128: 8 x 384, or 304 x 128 the other way round.
        ("narrow", 2 * 8 * 384, 2 * 304 * 128),
        ("fast", 2 * 3 * 300, 0),  # to fast memory
        ("there", 0, 0),
        ("part", 2 * 3 * 128, 0),
        ("wide", 0, 4 * 8 * 384),
    ],
)
def test_tiles_and_memory_spaces(name, read, written):
    assert hlo.parse(TPU).traffic("main.1", name) == (read, written)


def test_estimated_cycles():
    table = hlo.parse(TPU).computations["main.1"]
    assert [table[name].cycles for name in ("narrow", "wide")] == [77, 0]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("source_target_pairs={{0,1},{1,0}}", [(0, 1), (1, 0)]),
    ],
)
def test_groups_of_devices(groups, expected):
    text = f"ENTRY %m () -> f32[] {{\n  %a = f32[] all-reduce-start(%b), {groups}, x=1\n}}"
    found = hlo.parse(text).computations["m"]["a"]
    assert (found.collective, found.groups) == ("all-reduce", expected)


def test_a_collective_without_groups_is_an_error():
    found = hlo.parse("ENTRY %m () -> f32[] {\n  %a = f32[] all-reduce(%b), x=1\n}")
    with pytest.raises(ValueError, match="a has no groups of devices"):
        print(found.computations["m"]["a"].groups)


def test_a_program_of_this_machine():
    def chunk(cache, weight):
        def body(carry):
            i, cache, x = carry
            x = jnp.tanh(x @ weight)
            return i + 1, jax.lax.dynamic_update_slice(cache, x[:1], (i, 0)), x

        start = jnp.zeros((), jnp.int32), cache, cache[:4]
        return jax.lax.while_loop(lambda carry: carry[0] < 5, body, start)[1]

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((128, 64), (64, 64))]
    text = jax.jit(chunk, donate_argnums=0).lower(*shapes).compile().as_text()
    module = hlo.parse(text)
    (body,) = [p for p in module.places() if p.path and p.path[-1][1] == "body"]
    moved = [module.traffic(body.name, x) for x in module.computations[body.name]]
    read = sum(r for r, _ in moved)
    # The weight and the stream, read once or, by the update, twice; never the cache.
    assert 4 * (64 * 64 + 4 * 64) <= read < 4 * (64 * 64 + 3 * 4 * 64) + 100
