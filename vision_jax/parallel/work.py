"""What a compiled program computes and moves on one device: products, and bytes to and from its large memory (HBM).

The compiler's own analysis counts a loop's body once; here each runs as often as its loop tells.
"""

import functools
import math
import re

import numpy as np

# What moves nothing by itself: names for parts of others, buffers, and what is counted where it starts.
FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
     "partition-id", "replica-id", "async-start", "custom-call-start", "opt-barrier", "AllocateBuffer", "ConcatBitcast")
)  # fmt: skip


def flops(program):
    """Floating-point operations of all products and convolutions of a step, on one device.

    Those of a Pallas kernel are as many as its `pl.CostEstimate` states.
    """
    total = 0
    for instruction, name, times in program.instructions():
        if instruction.opcode == "convolution":
            total += times * _convolution(instruction, program.computations[name])
        elif instruction.opcode == "dot":
            left = program.computations[name][instruction.operands[0]].shapes[0].dims
            contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
            inner = math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
            total += times * 2 * math.prod(instruction.shapes[0].dims) * inner
        elif instruction.opcode == "custom-call":
            total += times * (_stated(instruction, "flops") or 0)
    return total


def _stated(kernel, what):
    """What a Pallas kernel's cost estimate states, or None."""
    stated = kernel.attribute(rf"cost_estimate.*?{what}\W+(\d+)")
    return None if stated is None else int(stated)


def _convolution(instruction, body):
    """Operations of a convolution, which on TPUs a matrix product is too: batch dimensions become spatial ones."""
    left, right = (body[name].shapes[0].dims for name in instruction.operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    groups = int(instruction.attribute(r"feature_group_count=(\d+)") or 1)
    batches = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    lhs, rhs, out = labels.groups()
    products = left[lhs.index("f")] // groups * right[rhs.index("o")] * (left[lhs.index("b")] // batches)
    spatial = sum(label.isdigit() for label in lhs)
    fields = dict(field.split("=") for field in window.split())
    for d in range(spatial):

        def field(name, default):
            return fields[name].split("x")[d] if name in fields else default

        products *= _meetings(
            left[lhs.index(str(d))], right[rhs.index(str(d))], instruction.shapes[0].dims[out.index(str(d))],
            int(field("stride", 1)), int(str(field("pad", "0_0")).split("_")[0]),
            int(field("lhs_dilate", 1)), int(field("rhs_dilate", 1)),
        )  # fmt: skip
    return 2 * products


@functools.cache
def _meetings(size, kernel, out, stride, low, dilation, kernel_dilation):
    """Pairs of an output and a place of the kernel that meet an element of the input, neither padding nor a gap."""
    places = np.arange(out)[:, None] * stride - low + np.arange(kernel) * kernel_dilation
    return int(((places >= 0) & (places <= (size - 1) * dilation) & (places % dilation == 0)).sum())


def hbm_bytes(program):
    """Bytes that a step reads from and writes to a device's large memory.

    Operands and results of every instruction that do not lie in the core's own memory; of a fusion those that go in and
    out, and of what it slices or updates in place the slice. Padding of tiles is not counted.
    """
    total = 0
    for instruction, name, times in program.instructions(fused=False):
        does = instruction.attribute(r'custom_call_target="(\w+Buffer|\w+Bitcast)"') or instruction.opcode
        if does not in FREE and not instruction.opcode.endswith(("-update", "-done")):
            total += times * _moved(instruction, program.computations[name], program)
    return total


def _moved(instruction, body, program):
    operands = [body[name] for name in instruction.operands if name in body]
    shapes, opcode = instruction.shapes, instruction.opcode
    stated = _stated(instruction, "bytes_accessed") if opcode == "custom-call" else None
    if stated is not None:
        return stated
    if opcode == "fusion":
        return _fusion(instruction, operands, program)
    if opcode in ("dynamic-slice", "gather", "slice"):
        return shapes[0].hbm + (shapes[0].size if operands[0].shapes[0].in_hbm else 0)
    if opcode == "dynamic-update-slice":
        return operands[1].shapes[0].hbm + (operands[1].shapes[0].size if shapes[0].in_hbm else 0)
    if opcode == "slice-start":  # (all, the slice, a signal)
        return shapes[1].hbm + (shapes[1].size if shapes[0].in_hbm else 0)
    if opcode.endswith("-start"):  # operands are among the results
        return sum(shape.hbm for shape in shapes)
    return sum(shape.hbm for operand in (instruction, *operands) for shape in operand.shapes)


def _fusion(fusion, operands, program):
    """Bytes in and out of a fusion: what its body does with each operand and each result."""
    inside = program.computations[fusion.called[0]]
    total = 0
    for number, operand in enumerate(operands):
        if operand.shapes and operand.shapes[0].in_hbm:
            total += _read(inside, number, program)
    root = _root(inside)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(fusion.shapes):
        return total + sum(shape.hbm for shape in fusion.shapes)
    return total + sum(
        _written(result, inside, program) for result, shape in zip(results, fusion.shapes, strict=True) if shape.in_hbm
    )


def _root(inside):
    return next(instruction for instruction in inside.values() if instruction.root)


def _read(inside, number, program):
    """Bytes that a fusion's body reads of its parameter of a number: all of it, or slices."""
    parameter = next(i for i in inside.values() if i.opcode == "parameter" and i.operands[0] == str(number))
    whole, sliced, seen = parameter.shapes[0].size, 0, [parameter.name]
    while seen:
        name = seen.pop()
        for user in inside.values():
            for place in [place for place, operand in enumerate(user.operands) if operand == name]:
                if user.opcode == "bitcast":
                    seen.append(user.name)
                elif user.opcode == "fusion":  # fusions hold fusions
                    sliced += _read(program.computations[user.called[0]], place, program)
                elif user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                    sliced += user.shapes[0].size
                elif not (_hands_on(user) or (user.opcode == "dynamic-update-slice" and place == 0)):
                    return whole
    return min(whole, sliced)


def _hands_on(instruction):
    """Whether an operand has not moved: in a tuple, or in a collective that runs beside the fusion."""
    return instruction.opcode == "tuple" or "chain_id=" in instruction.attributes


def _written(result, inside, program):
    """Bytes that a fusion's body writes for one of its results: all of it, or what it updates in place."""
    while result.opcode == "bitcast" and result.operands[0] in inside:
        result = inside[result.operands[0]]
    if result.opcode == "fusion" and len(result.shapes) == 1:
        inner = program.computations[result.called[0]]
        return _written(_root(inner), inner, program)
    if result.opcode == "dynamic-update-slice":
        return inside[result.operands[1]].shapes[0].size
    return 0 if result.opcode == "parameter" or _hands_on(result) else result.shapes[0].size
