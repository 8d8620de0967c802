"""The text of a compiled program, one device's: its instructions, and how often each one runs.

Only what XLA prints of an optimised program is read here; `vision_jax.parallel.ahead` says what it costs.
"""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}


class Shape(NamedTuple):
    """One array: its type ("bf16"), its dimensions, and whether it lies in the chip's large memory (HBM)."""

    dtype: str
    dims: tuple
    in_hbm: bool

    @property
    def size(self):
        """Bytes, without the padding of tiles."""
        each = BYTES.get(self.dtype)
        if each is None:
            each = int(re.search(r"\d+", self.dtype)[0]) / 8  # f8e4m3fn, s32, u16, f64
        return each * math.prod(self.dims)

    @property
    def hbm(self):
        """Bytes in the chip's large memory."""
        return self.size if self.in_hbm else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: its results, what it does, the names of its operands, everything behind them."""

    name: str
    shapes: tuple
    opcode: str
    operands: tuple
    attributes: str
    root: bool

    def attribute(self, pattern):
        """The first group of a pattern in the attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @functools.cached_property
    def called(self):
        """Names of the computations that run as part of it; a reduction's own, of two scalars, is not told."""
        if self.opcode.endswith(("-update", "-done")):  # what their start named
            return []
        names = re.findall(r"\b(?:calls|body|condition|(?:true|false)_computation)=%?([\w.\-]+)", self.attributes)
        for several in re.findall(r"\b(?:branch|called)_computations=\{([^}]*)\}", self.attributes):
            names += re.findall(r"[\w.\-]+", several)
        if self.opcode in ("call", "async-start"):
            names += re.findall(r"\bto_apply=%?([\w.\-]+)", self.attributes)
        return names


@dataclasses.dataclass
class Program:
    """A compiled program.

    Attributes:
      computations: {name: {instruction's name: instruction}}, in the order of the text.
      entry: the name of the one that runs first.
      times: {computation: how often it runs}; those that never do are left out.
      fused: names of the computations that are one instruction of another's.
      unknown_loops: loops whose rounds are not told; they count once.
    """

    computations: dict
    entry: str
    times: dict = dataclasses.field(default_factory=dict)
    fused: set = dataclasses.field(default_factory=set)
    unknown_loops: tuple = ()

    def instructions(self, fused=True):
        """Yields (instruction, name of its computation, how often it runs); `fused`: also those inside fusions."""
        for name, times in self.times.items():
            if fused or name not in self.fused:
                for instruction in self.computations[name].values():
                    yield instruction, name, times


def parse(text):
    """The `Program` of `jax.jit(...).lower(...).compile().as_text()`."""
    computations, entry, body = {}, None, None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            body = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            body = None
        elif body is not None and (instruction := _instruction(line)):
            body[instruction.name] = instruction
    program = Program(computations, entry)
    _count(program)
    return program


def _instruction(line):
    head = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    called = re.match(r" ([a-z][a-z0-9\-]*)(?=\()", rest[end:])
    if not called:
        return None
    after = rest[end + called.end() :]
    close = _closing(after)
    operands = tuple(re.findall(r"%([\w.\-]+)", after[:close])) or (after[1:close],)
    return Instruction(head[2], _shapes(rest[:end]), called[1], operands, after[close + 1 :], bool(head[1]))


def _closing(text):
    """Where the parenthesis closes that the text begins with."""
    depth = 0
    for i in re.finditer(r"[()]", text):
        depth += 1 if i[0] == "(" else -1
        if not depth:
            return i.start()
    return len(text)


def _shapes(text):
    found = re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?", text)
    return tuple(
        Shape(dtype, tuple(map(int, filter(None, dims.split(",")))), not re.search(r"S\([1-9]\d*\)", layout))
        for dtype, dims, layout in found
    )


def _count(program):
    """How often each computation runs: callers before callees, so that their counts are whole."""
    callers = {name: [] for name in program.computations}
    unknown = []
    for name, body in program.computations.items():
        for instruction in body.values():
            rounds = 1
            if instruction.opcode == "while":
                rounds = _rounds(instruction, program)
                if rounds is None:
                    unknown.append((name, instruction.name))
                    rounds = 1
            for called in instruction.called:
                callers[called].append((name, rounds))
                if instruction.opcode == "fusion":
                    program.fused.add(called)

    @functools.cache
    def times(name):
        return int(name == program.entry) + sum(rounds * times(caller) for caller, rounds in callers[name])

    program.times = {name: times(name) for name in program.computations if times(name)}
    program.unknown_loops = tuple(loop for name, loop in unknown if name in program.times)


def _rounds(loop, program):
    """The rounds of a while: told by the compiler, or the constant that its condition counts up to; else None."""
    if told := loop.attribute(r"known_trip_count\W+n\W+(\d+)"):
        return int(told)
    condition = program.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
    ends = [i for i in condition.values() if i.opcode == "constant" and i.shapes[0].dims == ()]
    compares = [i for i in condition.values() if i.opcode == "compare"]
    for fusion in condition.values():
        compares += [i for name in fusion.called for i in program.computations[name].values() if i.opcode == "compare"]
    if len(ends) == len(compares) == 1 and "direction=LT" in compares[0].attributes and ends[0].operands[0].isdigit():
        return int(ends[0].operands[0])
    return None
