"""Steps compiled for slices that are not here: what is counted, on programs small enough to count by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import tpu as pod
from vision_jax.parallel import ahead, chips, collectives, hlo, work

BYTES = 4


def program(name, sizes, f, *shapes, specs=None, out=None):
    """(program, mesh) of f compiled for a slice; arrays are float32."""
    mesh = pod.mesh(name, **sizes)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = pod.compile_for(mesh, f, *shapes, specs=specs, out=out)
    return hlo.parse(compiled.as_text()), mesh


def loop(x, w, rounds=7):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=rounds)[0]


# --- What the text of a program says.

TEXT = """
HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %ar = f32[8,128]{1,0:T(8,128)} all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), to_apply=%add
  %y = f32[8,128]{1,0:T(8,128)S(1)} negate(%ar)
  ROOT %t = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%i, %ar)
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (a: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %a = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %g = f32[32,128]{1,0:T(8,128)} get-tuple-element(%a), index=1
  %s = (f32[8,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%g), replica_groups=mesh['a'=2,'b'=2] {'a','b'}
  %d = f32[32,128]{1,0} all-gather-done(%s)
  ROOT %w = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%a), condition=%condition, body=%body
}
"""


def test_a_loop_counts_for_each_of_its_rounds():
    p = hlo.parse(TEXT)
    assert p.times == {"main": 1, "body": 5, "condition": 5}
    assert p.unknown_loops == ()
    found = {c.kind: c for c in collectives.collectives(p, 4)}
    size = 8 * 128 * BYTES
    assert found["all-reduce"].times == 5
    assert found["all-reduce"].received == 2 * size / 2
    assert found["all-reduce"].group == (0, 2)
    assert found["all-gather"].received == 4 * size * 3 / 4
    assert found["all-gather"].group == (0, 1, 2, 3)
    # the loop reads and writes each sum, and negates it into the core's own memory
    assert work.hbm_bytes(p) == 5 * ((2 + 1) * size + 9) + (1 + 4) * size  # 9: of the comparison
    dynamic = hlo.parse(TEXT.replace("direction=LT", "direction=NE"))
    assert dynamic.times["body"] == 1
    assert len(dynamic.unknown_loops) == 1


FUSED = """
%inner (p0: f32[6,8,128], i0: s32[]) -> f32[1,8,128] {
  %p0 = f32[6,8,128]{2,1,0} parameter(0)
  %i0 = s32[]{:S(6)} parameter(1)
  ROOT %ds = f32[1,8,128]{2,1,0} dynamic-slice(%p0, %i0), dynamic_slice_sizes={1,8,128}
}

%outer (p1: f32[6,8,128], p2: f32[9,8,128], i1: s32[]) -> (f32[9,8,128], f32[6,8,128]) {
  %p1 = f32[6,8,128]{2,1,0} parameter(0)
  %p2 = f32[9,8,128]{2,1,0} parameter(1)
  %i1 = s32[]{:S(6)} parameter(2)
  %f = f32[1,8,128]{2,1,0} fusion(%p1, %i1), kind=kLoop, calls=%inner
  %dus = f32[9,8,128]{2,1,0} dynamic-update-slice(%p2, %f, %i1)
  ROOT %t = (f32[9,8,128]{2,1,0}, f32[6,8,128]{2,1,0}) tuple(%dus, %p1)
}

ENTRY %main (a: f32[6,8,128], b: f32[9,8,128], i: s32[]) -> (f32[9,8,128], f32[6,8,128]) {
  %a = f32[6,8,128]{2,1,0} parameter(0)
  %b = f32[9,8,128]{2,1,0} parameter(1)
  %i = s32[]{:S(6)} parameter(2)
  ROOT %fusion = (f32[9,8,128]{2,1,0}, f32[6,8,128]{2,1,0}) fusion(%a, %b, %i), kind=kLoop, calls=%outer
}
"""


def test_a_fusion_moves_what_it_slices_and_updates():
    assert work.hbm_bytes(hlo.parse(FUSED)) == 2 * 8 * 128 * BYTES
    whole = FUSED.replace("fusion(%p1, %i1), kind=kLoop, calls=%inner", "reduce(%p1, %i1), dimensions={0}")
    assert work.hbm_bytes(hlo.parse(whole)) == (6 + 1) * 8 * 128 * BYTES


@pytest.mark.heavy
def test_products_of_a_compiled_program():
    p, _ = program("v5e", {}, lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), (2, 3, 64, 32), (2, 3, 128, 32))
    assert work.flops(p) == 2 * 2 * 3 * 64 * 128 * 32
    p, _ = program("v5e", {}, loop, (256, 256), (256, 256))
    assert work.flops(p) == 7 * 2 * 256**3

    def same(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    p, _ = program("v5e", {}, same, (8, 16, 16, 64), (3, 3, 64, 128))
    # eight outputs a side; the last one's window hangs over the edge by one
    assert work.flops(p) == 2 * 8 * 64 * 128 * (8 * 3 - 1) ** 2


@pytest.mark.heavy
def test_collectives_of_a_compiled_program():
    def f(x, w):  # rows over both axes; the product's inner dimension is split over "b" alone
        return x.sum(0), w @ w.T

    p, mesh = program(
        "v5e:2x2", {"a": 2, "b": 2}, f, (64, 256), (512, 1024), specs=[P(("a", "b")), P(None, "b")], out=P()
    )
    moved = {}
    for c in collectives.collectives(p, mesh.size):
        assert c.kind == "all-reduce"
        moved[len(c.group)] = moved.get(len(c.group), 0) + c.received * c.times
    assert moved == {4: 2 * 3 / 4 * 256 * BYTES, 2: 2 * 1 / 2 * 512 * 512 * BYTES}

    def gathered(x, ws):  # the weights of each round are gathered in it
        def body(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, P())), None

        return jax.lax.scan(body, x, ws)[0]

    p, mesh = program("v5e:2x2", {"a": 4}, gathered, (64, 512), (6, 512, 512), specs=[P("a"), P(None, "a")])
    found = [c for c in collectives.collectives(p, mesh.size) if c.kind == "all-gather"]
    assert {c.times for c in found} == {6}
    gathered = sum(c.times * np.prod(c.shapes[0]) for c in found)
    assert gathered == 6 * 512 * 512


# --- The roofline.


def test_links():
    v5e, v5p = chips.chip_of("TPU v5 lite"), chips.chip_of("TPU v5")
    row = [(x, 0) for x in range(4)]
    assert collectives.link_bandwidth(v5e, row, (4, 4)) == v5e.link  # a line: its ends have one link
    whole = [(x, 0) for x in range(16)]
    assert collectives.link_bandwidth(v5e, whole, (16, 16)) == 2 * v5e.link  # a ring
    assert collectives.link_bandwidth(v5e, row, (16, 16)) == v5e.link
    square = [(x, y) for x in range(4) for y in range(4)]
    assert collectives.link_bandwidth(v5e, square, (4, 4)) == 2 * v5e.link
    cube = [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    assert collectives.link_bandwidth(v5p, cube, (4, 4, 4)) == 6 * v5p.link
    assert collectives.link_bandwidth(v5p, [(0, 0, 0), (0, 0, 0)], (2, 2, 1)) == np.inf


def test_roofline():
    gather = collectives.Collective("all-gather", ((1,),), 1e9, (0, 1), 3, "")
    v5e = chips.chip_of("TPU v5 lite")
    links = collectives.seconds([gather], v5e, [(0, 0), (1, 0)], (2, 2))
    assert links == pytest.approx(3 * 1e9 / 50e9)
    roofline = ahead.Roofline(0.02, 0.03, links)
    assert (roofline.step, roofline.bound) == (links, "interconnect")
    known = dict(
        parameters=1,
        gradients=1,
        optimizer=2,
        average=0,
        unsharded=0,
        temporaries=3,
        total=6,
        flops=197e12 * 0.02,
        hbm_bytes=1,
    )
    r = ahead.Report("TPU v5 lite", 4, 1, 16e9, **known, model_flops=4 * 197e12 * 0.015, roofline=roofline)
    assert r.utilisation == pytest.approx(0.015 / 0.06)
    assert r.fits
    assert "interconnect       60.000 ms   <- rules" in r.lines()
    assert r.as_json()["bound"] == "interconnect"


def test_what_does_not_fit():
    used = RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. ")
    assert ahead.needed(used, 2**30) == 20.5 * 2**30
    beside = "Ran out of memory on HBM, the total memory required for HLO temporaries (19.50G) exceeds available HBM"
    assert ahead.needed(RuntimeError(beside), 2**30) == 20.5 * 2**30
    assert ahead.needed(RuntimeError("RESOURCE_EXHAUSTED"), 2**30) is None
    known = dict(parameters=1, gradients=1, optimizer=2, average=0, unsharded=0, model_flops=1, temporaries=None)
    for total, said in (
        (20.5 * 2**30, "20.500 GiB of 16.0: does NOT"),
        (None, "more than there is of 16.0: does N"),
    ):
        r = ahead.Report("TPU v5 lite", 4, 1, 16 * 2**30, total=total, **known)
        assert not r.fits
        assert any(said in line for line in r.lines())


@pytest.mark.parametrize(
    ("name", "kind", "memory", "per_chip", "grid"),
    [
        ("v4:2x2x1", "TPU v4", 32, 1, (2, 2, 1)),
        ("v5e:2x4", "TPU v5 lite", 16, 1, (2, 4)),
        ("v5p:2x2x2", "TPU v5", 95, 1, (2, 2, 2)),
        ("v6e:2x2", "TPU v6 lite", 32, 1, (2, 2)),
        ("7x:2x2x1", "TPU7x", 96, 2, (2, 2, 1)),
    ],
)
def test_slices(name, kind, memory, per_chip, grid):
    mesh = pod.mesh(name, data=per_chip * int(np.prod(grid)))
    where = ahead.slice_of(mesh)
    assert mesh.devices.flat[0].device_kind == kind
    assert (where.chip.memory, where.per_chip, where.grid) == (memory * 2**30, per_chip, grid)
