"""Reading exchanges out of the text of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from tests.engine.collectives import Collective, collectives

P = PartitionSpec


def text_of(function, *args, specs, out):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    return jax.jit(mapped).lower(*args).compile().as_text()


def test_each_kind_with_its_group_and_size():
    def exchange(x, y):
        summed = jax.lax.psum(x, "y")
        joined = jax.lax.all_gather(y, "x", axis=0, tiled=True)
        turned = jax.lax.ppermute(y * 2, "y", [(i, (i + 1) % 4) for i in range(4)])
        return summed, joined, turned

    text = text_of(
        exchange,
        jnp.zeros((8, 5)),
        jnp.zeros((2, 3), jnp.int32),
        specs=(P(("x", "y")), P("x")),
        out=(P("x"), P(), P("x")),
    )
    found = {each.kind: each for each in collectives(text)}
    assert found["all-reduce"] == Collective("all-reduce", (("f32", (1, 5)),), 4, 0)
    assert found["all-reduce"].size == 20
    assert found["all-gather"] == Collective("all-gather", (("s32", (2, 3)),), 2, 0)
    assert found["all-gather"].size == 24
    turned = found["collective-permute"]
    assert turned.arrays == (("s32", (1, 3)),)


def test_what_is_inside_of_loops_and_branches_is_found():
    def exchange(x):
        def body(x, step):
            grown = jax.lax.cond(
                step > x[0, 0], lambda x: jax.lax.psum(x, "y"), lambda x: jnp.sin(x), x
            )
            return jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.pmax(jnp.cos(y), "x"), grown), None

        x, _ = jax.lax.scan(body, jax.lax.pmin(x, ("x", "y")), jnp.arange(3.0))
        return x

    text = text_of(exchange, jnp.ones((8, 2)), specs=P(("x", "y")), out=P(("x", "y")))
    found = collectives(text)
    assert [(each.group, each.loops) for each in sorted(found, key=lambda each: each.loops)] == [
        (8, 0),
        (4, 1),
        (2, 2),
    ]


HEAD = "ENTRY %main (x: f32[4]) -> f32[4] {\n"


@pytest.mark.parametrize(
    ("line", "group"),
    [
        ("  ROOT %a = f32[4]{0} all-reduce(%x), replica_groups={{0,1,2},{3,4,5}}, to_apply=%s", 3),
        ("  ROOT %a = f32[4]{0} all-reduce(%x), replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        (
            "  ROOT %a = f32[4]{0:T(128)S(1)} all-reduce(%x), replica_groups="
            "mesh['axis_0'=4,'axis_1'=2,'axis_2'=3] {'axis_0','axis_2'}, to_apply=%s",
            12,
        ),
    ],
)
def test_all_notations_of_groups(line, group):
    add = "%s (a: f32[], b: f32[]) -> f32[] {\n  ROOT %c = f32[] add(%a, %b)\n}\n\n"
    (found,) = collectives(f"{add}{HEAD}{line}\n}}\n")
    assert found == Collective("all-reduce", (("f32", (4,)),), group, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  %a = f32[4] all-reduce-start(%x), replica_groups={{0,1}}", "has all-reduce-start"),
        ("  %a = f32[4] all-reduce(%x), replica_groups={}", "without groups of devices"),
    ],
)
def test_what_cannot_be_read_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        collectives(f"{HEAD}{line}\n}}\n")


def test_one_device_exchanges_nothing():
    assert collectives(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text()) == []
