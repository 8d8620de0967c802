"""What the GPU kernels share: the call, tiles that the tensor cores read, products; and where JAX's versions differ.

Pallas Mosaic GPU, for sm_90, always with Warpgroup semantics: 128 threads work as one, and where an array lies in their
registers is inferred. Triton is on its way out of JAX and is not used.
"""

import inspect

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from vision_jax.kernels import dispatch

LOG2E = 1.4426950408889634


def call(body, operands, *, out_type, scratch, grid, names, cost, name):
    """The results of a kernel, a list.

    Args:
      body: the kernel, of references to the operands, the results and the scratch memory.
      operands: arrays.
      out_type: a list of shapes.
      scratch: a list of scratch memories; barriers too.
      grid, names: blocks along each axis, the last one the fastest, and the axes' names.
      cost: a `pl.CostEstimate`; versions of JAX before 0.12 cannot be told.
      name: of the kernel, in profiles and in the compiled text.
    """
    told = {"cost_estimate": cost} if "cost_estimate" in inspect.signature(plgpu.kernel).parameters else {}
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch,
        grid=grid,
        grid_names=names,
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=_interpret(),
        kernel_name=name,
        **told,
    )(*operands)


def interpret_params(**options):
    """The parameters of Pallas's GPU interpreter, which older versions of JAX keep to themselves."""
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams(**options)
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams(**options)


def _interpret():
    mode = dispatch.interpret()
    return interpret_params() if mode is True else mode


def tile(shape, dtype=jnp.bfloat16, columns=None):
    """Shared memory [rows, columns] in the order that the tensor cores read without conflicts between banks.

    The two tiles of a product must be in the same order, that of the narrower one: `columns` are those to order for.
    """
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle((columns or shape[-1]) * itemsize * 8)
    transforms = (plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def product(a, b, transposed=(False, False)):
    """a @ b in float32: a [64, k] a tile or in registers, b [k, n] a tile; either may be given as its transpose.

    The interpreters know neither the transpose of a tile nor an operand in registers: they are given another product.
    """
    if dispatch.interpret():
        a, b = (x[...].T if turned else x[...] for x, turned in zip((a, b), transposed, strict=True))
        return jnp.dot(a, b, preferred_element_type=jnp.float32)
    a, b = (x.T if turned else x for x, turned in zip((a, b), transposed, strict=True))

    def run(total):
        plgpu.wgmma(total, a, b)
        return total[...]

    return pl.run_scoped(run, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


def laid(x, reduced=None):
    """x, its place in the registers stated: that of a product's result [64 n, columns].

    `reduced`: the axis that an array of one dimension lacks. What is not stated is searched for, which can take hours.
    A load lies in one place, and the same load twice is one: where numbers go along rows and along columns of one tile,
    they are held in shared memory twice, or JAX 0.12 searches in vain.
    """
    if dispatch.interpret():
        return x
    layout = plgpu.Layout.WGMMA
    return plgpu.layout_cast(x, layout if reduced is None else layout.reduce(reduced))


def rows(x, columns):
    """[rows] -> [rows, columns], one value a row."""
    return jax.lax.broadcast_in_dim(x, (x.shape[0], columns), (0,))


def columns(x, rows):
    """[columns] -> [rows, columns], one value a column."""
    return jax.lax.broadcast_in_dim(x, (rows, x.shape[0]), (1,))
