"""Reading compiled HLO, on texts small enough to count by hand."""
# ruff: noqa: E501

import pytest

from tools.plan import hlo

MESH = {"replica": 2, "fsdp": 4}
F32 = 4


def cost(text, mesh=MESH):
  return hlo.Module(text).cost(mesh)


LOOP = """HloModule loop

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%state), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %sum = f32[8,16]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %out = (s32[], f32[8,16]{1,0}) tuple(%next, %sum)
}

%condition (state.1: (s32[], f32[8,16])) -> pred[] {
  %state.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(10)
  ROOT %less = pred[] compare(%at, %limit), direction=LT
}

ENTRY %main (x.1: f32[8,16]) -> f32[8,16] {
  %x.1 = f32[8,16]{1,0} parameter(0)
  %start = s32[] constant(0)
  %copied = s32[] copy(%start)
  %begin = (s32[], f32[8,16]{1,0}) tuple(%copied, %x.1)
  %loop = (s32[], f32[8,16]{1,0}) while(%begin), condition=%condition, body=%body
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs():
  found = cost(LOOP)
  # From 0 to 10 in steps of 2.
  assert found.collectives == [hlo.Collective("all-reduce", ("fsdp",), 4, 8 * 16 * F32, 5)]
  assert found.unknown_loops == 0
  # Each trip reads and writes x and the counter; before it the counter is copied.
  assert found.hbm_bytes == 5 * (2 * 8 * 16 * F32 + 3 * 4) + 2 * 4
  # An all-reduce of 4 devices sends 3/4 of the bytes twice.
  assert found.collectives[0].wire_bytes == 5 * 2 * 0.75 * 8 * 16 * F32


def test_what_the_compiler_wrote_down_goes_first():
  known = 'body=%body, backend_config={"known_trip_count":{"n":"7"},"other":1}'
  [found] = cost(LOOP.replace("body=%body", known)).collectives
  assert found.count == 7


def test_a_loop_that_cannot_be_read_counts_once_and_is_told():
  found = cost(LOOP.replace("direction=LT", "direction=NE"))
  assert found.unknown_loops == 1 and found.collectives[0].count == 1


@pytest.mark.parametrize(
  "text, groups, axes",
  [
    ("{{0,1,2,3},{4,5,6,7}}", [[0, 1, 2, 3], [4, 5, 6, 7]], ("fsdp",)),
    ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]], ("replica", "fsdp")),
    ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]], ("fsdp",)),
    ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]], ("replica",)),
    ("[1,8]<=[8]", [[0, 1, 2, 3, 4, 5, 6, 7]], ("replica", "fsdp")),
    ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]], ("fsdp",)),
    ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]], ("replica",)),
    ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]], ("replica",)),
    ("mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]], ("fsdp",)),
  ],
)
def test_groups_and_their_mesh_axes(text, groups, axes):
  attrs = f", channel_id=3, replica_groups={text}, use_global_device_ids=true"
  assert hlo.replica_groups(attrs, 8) == groups
  assert hlo.mesh_axes(groups, MESH) == axes


ASYNC = """HloModule pairs

ENTRY %main (x: bf16[4,8], y: f32[16]) -> bf16[16,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %y = f32[16]{0} parameter(1)
  %start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %send = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%y), source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %sent = f32[16]{0} collective-permute-done(%send)
  %stay = f32[16]{0} collective-permute(%sent), source_target_pairs={{0,0},{1,1}}
  %across = f32[16]{0} collective-permute(%sent), source_target_pairs={{0,4},{4,0},{1,5},{5,1}}
  %part = f32[4]{0} reduce-scatter(%across), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  %alone = f32[4]{0} all-reduce(%part), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %done = bf16[16,8]{1,0} all-gather-done(%start)
}
"""


def test_pairs_count_once_and_lone_groups_not_at_all():
  assert sorted(hlo.merged(cost(ASYNC).collectives)) == [
    hlo.Collective("all-gather", ("fsdp",), 4, 16 * 8 * 2, 1),
    hlo.Collective("collective-permute", ("fsdp",), 2, 16 * F32, 1),
    hlo.Collective("collective-permute", ("replica",), 2, 16 * F32, 1),
    hlo.Collective("reduce-scatter", ("fsdp",), 4, 16 * F32, 1),
  ]


FUSED = """HloModule fused

%slices (stack: f32[12,64], at: s32[], out: f32[12,64], row: f32[1,64]) -> f32[12,64] {
  %stack = f32[12,64]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,64]{1,0} dynamic-slice(%stack, %at, %zero), dynamic_slice_sizes={1,64}
  %out = f32[12,64]{1,0} parameter(2)
  %row = f32[1,64]{1,0} parameter(3)
  %sum = f32[1,64]{1,0} add(%one, %row)
  ROOT %new = f32[12,64]{1,0} dynamic-update-slice(%out, %sum, %at, %zero)
}

%async_collective_fusion.1 (p: f32[4], q: f32[4]) -> (f32[16], f32[4]) {
  %p = f32[4]{0} parameter(0)
  %gather = f32[16]{0} all-gather(%p), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
  %q = f32[4]{0} parameter(1)
  ROOT %both = (f32[16]{0}, f32[4]{0}) tuple(%gather, %q)
}

%begins (r: f32[4]) -> f32[16] {
  %r = f32[4]{0} parameter(0)
  %gather.1 = f32[16]{0} all-gather(%r), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %call = f32[16]{0:S(1)} custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

ENTRY %main (a: f32[12,64], b: s32[], c: f32[12,64], d: f32[1,64], e: f32[4]) -> f32[12,64] {
  %a = f32[12,64]{1,0:T(8,128)} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[12,64]{1,0:T(8,128)} parameter(2)
  %d = f32[1,64]{1,0:T(8,128)S(1)} parameter(3)
  %e = f32[4]{0:S(1)} parameter(4)
  %started = f32[16]{0:T(128)S(1)} fusion(%e), kind=kCustom, calls=%begins
  %on = (f32[16]{0:S(1)}, f32[4]{0:S(1)}) fusion(%e, %e), kind=kCustom, calls=%async_collective_fusion.1
  ROOT %f = f32[12,64]{1,0:T(8,128)} fusion(%a, %b, %c, %d), kind=kLoop, calls=%slices
}
"""


def test_slices_count_as_slices_and_fast_memory_not_at_all():
  found = cost(FUSED)
  # One row of `a` is read and one of `c` written; `d` lies in fast memory; `b` is one number.
  assert found.hbm_bytes == 64 * F32 + 4 + 64 * F32
  # Threaded through two fusions, started in one.
  assert found.collectives == [hlo.Collective("all-gather", ("fsdp",), 4, 16 * F32, 1)]


SLICES = """HloModule slices

%all-reduce-scatter (x: f32[16]) -> f32[4] {
  %x = f32[16]{0} parameter(0)
  %sum = f32[16]{0} all-reduce(%x), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  %at = s32[] constant(0)
  ROOT %mine = f32[4]{0} dynamic-slice(%sum, %at), dynamic_slice_sizes={4}
}

ENTRY %main (x.1: f32[16]) -> f32[4] {
  %x.1 = f32[16]{0} parameter(0)
  %part = f32[4]{0} fusion(%x.1), kind=kCustom, calls=%all-reduce-scatter
  %token = token[] after-all()
  %send = (f32[4]{0}, u32[], token[]) send(%part, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[4]{0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2
  %got = (f32[4]{0}, token[]) recv-done(%recv), channel_id=1
  ROOT %result = f32[4]{0} get-tuple-element(%got), index=0
}
"""


def test_slices_reduce_within_and_then_between():
  assert hlo.merged(cost(SLICES).collectives) == [
    hlo.Collective("reduce-scatter", ("fsdp",), 4, 16 * F32, 1),
    hlo.Collective("all-reduce", ("replica",), 2, 4 * F32, 1),
  ]


BRANCHES = """HloModule branches

%cheap (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}

%dear (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%y), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
}

ENTRY %main (p: pred[], z: f32[8]) -> f32[8] {
  %p = pred[] parameter(0)
  %z = f32[8]{0} parameter(1)
  ROOT %c = f32[8]{0} conditional(%p, %z, %z), true_computation=%cheap, false_computation=%dear
}
"""


def test_the_dearest_branch():
  found = cost(BRANCHES)
  assert found.collectives == [hlo.Collective("all-reduce", ("replica",), 2, 8 * F32, 1)]
  assert found.hbm_bytes == 2 * 8 * F32
