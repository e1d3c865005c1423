"""What a step moves, on a text small enough to count by hand."""

import dataclasses

import pytest

from jax_power_smc.benchmarks import hlo, step_account
from jax_power_smc.benchmarks.step_account import Cost

# A step reads a weight, lets a kernel attend, and moves rows in a loop within a loop.
TEXT = """\
%blocks (b: (f32[8,32], s32[])) -> (f32[8,32], s32[]) {
  %b = (f32[8,32]{1,0}, s32[]) parameter(0)
  %leaf.2 = f32[8,32]{1,0} get-tuple-element(%b), index=0
  %i.2 = s32[] get-tuple-element(%b), index=1
  %piece = f32[1,4]{1,0} dynamic-slice(%leaf.2, %i.2, %i.2), dynamic_slice_sizes={1,4}
  %put = f32[8,32]{1,0} dynamic-update-slice(%leaf.2, %piece, %i.2, %i.2)
  ROOT %out.2 = (f32[8,32]{1,0}, s32[]) tuple(%put, %i.2)
}

%more (b: (f32[8,32], s32[])) -> pred[] {
  %b = (f32[8,32]{1,0}, s32[]) parameter(0)
  ROOT %t = pred[] constant(true)
}

%moves (m: (f32[8,32], s32[])) -> (f32[8,32], s32[]) {
  %m = (f32[8,32]{1,0}, s32[]) parameter(0)
  %i.3 = s32[] get-tuple-element(%m), index=1
  %next = s32[] negate(%i.3)
  ROOT %inner = (f32[8,32]{1,0}, s32[]) while(%m), condition=%more, body=%blocks
}

%known (k: f32[4]) -> f32[4] {
  %k = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%k)
}

%light (l: f32[4]) -> f32[4] {
  %l = f32[4]{0} parameter(0)
  ROOT %same = f32[4]{0} bitcast(%l)
}

%heavy (h: f32[4]) -> f32[4] {
  %h = f32[4]{0} parameter(0)
  ROOT %other = f32[4]{0} exponential(%h)
}

%step (s: (f32[8,32], f32[16,24], s32[])) -> (f32[8,32], f32[16,24], s32[]) {
  %s = (f32[8,32]{1,0}, f32[16,24]{1,0}, s32[]) parameter(0)
  %leaf = f32[8,32]{1,0} get-tuple-element(%s), index=0
  %weight = f32[16,24]{1,0} get-tuple-element(%s), index=1
  %i = s32[] get-tuple-element(%s), index=2
  %x = f32[8,16]{1,0:S(1)} custom-call(%leaf, %i), custom_call_target="attention"
  %logits = f32[8,24]{1,0} dot(%x, %weight), backend_config={"estimated_cycles":"100"}
  %sum = f32[8,24]{1,0} all-reduce(%logits), replica_groups={{0,1}}, x={"estimated_cycles":"7"}
  %four = f32[4]{0} slice(%sum), slice={[0:1], [0:4]}
  %loop.1 = f32[4]{0} while(%four), body=%known, x={"known_trip_count":{"n":"5"}}
  %either = f32[4]{0} conditional(%i, %four, %four), branch_computations={%light, %heavy}
  %start.1 = (f32[8,32]{1,0}, s32[]) tuple(%leaf, %i)
  %moved = (f32[8,32]{1,0}, s32[]) while(%start.1), condition=%more, body=%moves
  %new = f32[8,32]{1,0} get-tuple-element(%moved), index=0
  ROOT %out = (f32[8,32]{1,0}, f32[16,24]{1,0}, s32[]) tuple(%new, %weight, %i)
}

ENTRY %main (a: f32[8,32], w: f32[16,24], i: s32[]) -> (f32[8,32], f32[16,24], s32[]) {
  %a = f32[8,32]{1,0} parameter(0)
  %w = f32[16,24]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %laid = f32[8,32]{0,1} copy(%a)
  %start = (f32[8,32]{1,0}, f32[16,24]{1,0}, s32[]) tuple(%laid, %w, %i.1)
  ROOT %chunk = (f32[8,32]{1,0}, f32[16,24]{1,0}, s32[]) while(%start), condition=%more, body=%step
}
"""
LEAF, LOGITS, VOCAB = 8 * 32, 8 * 24, 24


def account(text=TEXT, **options):
    return step_account.account(hlo.parse(text), leaf=LEAF, logits=LOGITS, vocab=VOCAB, **options)


def test_a_step_at_rest():
    # Kernel: the index. Product: the weight; logits out. Exchange: in and out. Slice: 4 numbers in
    # and out. Loop of 5 turns: 4 in and 4 out. The larger branch: the same once.
    read = 4 + 4 * 16 * 24 + 4 * LOGITS + 16 + 5 * 16 + 16
    written = 4 * LOGITS + 4 * LOGITS + 16 + 5 * 16 + 16
    assert account().rest == Cost(read, written, 4 + 5 + 1, cycles=107, exchange_cycles=7)


def test_rows_that_move():
    found = account()
    assert found.outer.moved == 8
    assert (found.inner.read, found.inner.written) == (32, 32)
    assert found.moving(3).moved == 8 + 3 * 64


def test_what_is_found():
    found = account()
    assert found.attention == ("attention",)
    assert found.copies == () and found.relayouts == ("copy f32[8,32]",)
    assert (found.heads, found.sorts, found.carried) == (1, 0, ())
    assert found.collectives == (("all-reduce", "f32[8,24]", ((0, 1),)),)


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ("%new =", "%c = f32[8,32]{0,1} copy(%leaf)\n  %new =", "copies"),
        (
            "{1,0} dynamic-update-slice(%leaf.2, %piece, %i.2, %i.2)",
            "{1,0} copy(%leaf.2)",
            "copies",
        ),
        ("= f32[4]{0} conditional(", "= f32[8,32]{1,0} conditional(", "carried"),
        ("f32[4]{0} bitcast(%l)", "f32[256]{0} broadcast(%l)", "copies"),
    ],
)
def test_what_must_not_be_is_seen(before, after, field):
    assert before in TEXT
    assert len(getattr(account(TEXT.replace(before, after)), field)) == 1


def test_logits_twice_and_a_sort_of_the_vocabulary():
    again = (
        "%again = f32[8,24]{1,0} dot(%x, %weight)\n  %o = f32[8,24]{1,0} sort(%again)\n  %four ="
    )
    found = account(TEXT.replace("%four =", again, 1))
    assert (found.heads, found.sorts) == (2, 1)


def test_a_program_without_a_loop_over_steps():
    found = account(in_loop=False)
    assert found.rest.moved == 2 * 4 * LEAF  # the copy in the entry


def test_costs_add():
    one = Cost(1, 2, 3, 4, 5)
    assert one.plus(one, 2) == Cost(*(3 * x for x in dataclasses.astuple(one)))
