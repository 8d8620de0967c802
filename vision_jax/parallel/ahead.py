"""A step compiled for a slice that is not here: whether it fits, what it moves, how fast it can be at most.

The roofline: a step takes at least the longest of what the products need at the chip's peak, the bytes at its memory's
bandwidth, and the collectives over its links and between slices, all overlapping wholly. Of it the model's own FLOPs,
which rematerialisation does not raise, are the model-FLOPs utilisation (PaLM, arXiv:2204.02311, appendix B).
"""

import dataclasses
import math
import re
from typing import NamedTuple

import jax

from vision_jax.errors import unknown
from vision_jax.parallel import collectives, hlo, work
from vision_jax.parallel.chips import CHIPS, GIB, Chip, chip_of
from vision_jax.parallel.sharding import HOST

LARGEST = 10  # collectives that are told one by one


class Slice(NamedTuple):
    """The devices of a mesh: each one's share of a chip's rates and memory, and where its chip lies.

    Of several slices the first; the others are like it.
    """

    chip: Chip
    per_chip: int  # devices
    coordinates: tuple  # of each device's chip, in the mesh's order
    grid: tuple  # chips along each dimension
    slices: int  # of the mesh


def slice_of(mesh):
    """The `Slice` of a mesh of TPUs."""
    devices = list(mesh.devices.flat)
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        raise unknown("chip", devices[0].device_kind, CHIPS)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    first = devices[: len(devices) // slices]  # the axis that goes across slices is the outermost
    coordinates = tuple(tuple(device.coords)[: chip.dimensions] for device in first)
    per_chip = len(first) // len(set(coordinates))
    share = chip._replace(
        flops=chip.flops / per_chip, bandwidth=chip.bandwidth / per_chip, memory=chip.memory / per_chip,
        network=chip.network / per_chip,
    )  # fmt: skip
    grid = tuple(1 + max(positions) for positions in zip(*coordinates, strict=True))
    return Slice(share, per_chip, coordinates, grid, slices)


def held(tree, host=False):
    """Bytes that one device holds of a tree of `jax.ShapeDtypeStruct` with shardings; or its host for it."""
    return sum(
        math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize
        for s in jax.tree.leaves(tree)
        if (s.sharding.memory_kind == HOST) == host
    )


class Roofline(NamedTuple):
    """The least seconds that a step needs for its products, its memory, its links, and the network between slices."""

    compute: float
    hbm: float
    interconnect: float
    network: float = 0.0

    @property
    def step(self):
        """Seconds of a step, were everything to overlap."""
        return max(self)

    @property
    def bound(self):
        """What rules: "compute", "hbm", "interconnect" or "network"."""
        return max(self._fields, key=lambda field: getattr(self, field))


@dataclasses.dataclass(frozen=True)
class Report:
    """What is known of a step on one device of a slice; bytes and floating-point operations.

    Attributes:
      device_kind, devices, per_chip: which devices, how many, how many of them on a chip.
      capacity: bytes of memory.
      parameters, optimizer, average: what the state holds; `average` of the model, 0 without one.
      unsharded: of the state, what every device holds whole.
      offloaded: of the optimiser's state, what the host holds for a device: moved there and back in a step, over a link
        of which no rate is published, so that the roofline lacks it.
      gradients: as large as the parameters' shards; they lie among the temporaries.
      temporaries: beside state and batch. None where the compiler gave up for want of memory.
      total: all that must be held at once; None where the compiler gave up without telling.
      model_flops: of a whole step, on all devices: three times the forward pass's, which is the convention for a
        gradient, and once a teacher's; less where layers are frozen.
      flops: of all products that one device runs, recomputed ones among them.
      hbm_bytes: moved to and from its memory.
      moved: {kind: (collectives a step, bytes that a device receives)}.
      largest: the collectives that move most, one dict each: kind, shapes, times, bytes received, source.
      roofline: None where the compiler gave up.
      unknown_loops: loops whose rounds the program does not tell, counted once.
    """

    device_kind: str
    devices: int
    per_chip: int
    capacity: float
    parameters: float
    gradients: float
    optimizer: float
    average: float
    unsharded: float
    temporaries: float | None
    total: float | None
    model_flops: float
    flops: float | None = None
    hbm_bytes: float | None = None
    moved: dict = dataclasses.field(default_factory=dict)
    largest: tuple = ()
    roofline: Roofline | None = None
    unknown_loops: int = 0
    offloaded: float = 0.0

    @property
    def fits(self):
        """Whether all that is held at once is no more than the memory, and the compiler agrees."""
        return self.temporaries is not None and self.total <= self.capacity

    @property
    def utilisation(self):
        """The greatest model-FLOPs utilisation that the roofline allows."""
        peak = chip_of(self.device_kind).flops / self.per_chip * self.devices
        return self.model_flops / (peak * self.roofline.step)

    def as_json(self):
        """A dict of numbers and strings, with what follows from the fields."""
        found = dataclasses.asdict(self) | {"fits": self.fits}
        found["moved"] = {kind: {"count": n, "bytes": size} for kind, (n, size) in self.moved.items()}
        if self.roofline:
            found["roofline"] = self.roofline._asdict()
            found |= {"step_seconds": self.roofline.step, "bound": self.roofline.bound, "mfu": self.utilisation}
        return found

    def lines(self):
        """The table, a list of lines."""

        def gib(size):
            return f"{size / GIB:8.3f} GiB"

        which = "chip" if self.per_chip == 1 else f"device, {self.per_chip} a chip"
        out = [f"memory a {which} ({self.device_kind})"]
        out.append(f"  parameters     {gib(self.parameters)}")
        out.append(f"  optimiser      {gib(self.optimizer)}")
        if self.offloaded:
            out.append(f"  on its host    {gib(self.offloaded)} of the optimiser, to the device and back in each step")
        if self.average:
            out.append(f"  average        {gib(self.average)}")
        out.append(f"  of these whole {gib(self.unsharded)}, the same on every device")
        if self.temporaries is not None:
            out.append(f"  temporaries    {gib(self.temporaries)}, gradients of {self.gradients / GIB:.3f} among them")
        verdict = "fits" if self.fits else "does NOT fit"
        total = "     more than there is" if self.total is None else gib(self.total)
        out.append(f"  all            {total} of {self.capacity / GIB:.1f}: {verdict}")
        out.append(f"model FLOPs      {self.model_flops:.4g} a step")
        if self.roofline is None:
            return [*out, "The compiler found no room: what it would move and how long a step would take is not known."]
        share = self.model_flops / self.devices / self.flops if self.flops else 0
        out.append(f"executed         {self.flops:.4g} a device, of which {share:.0%} are the model's")
        out.append(f"memory traffic {gib(self.hbm_bytes)} a device")
        for kind, (count, size) in sorted(self.moved.items()):
            out.append(f"{kind:<34}{count:>5} a step {gib(size)} received by a device")
        if not self.moved:
            out.append("no collectives")
        for field, value in self.roofline._asdict().items():
            if field == "network" and not value:
                continue
            out.append(f"{field:<14}{1e3 * value:11.3f} ms{'   <- rules' if field == self.roofline.bound else ''}")
        out.append(f"model-FLOPs utilisation: at most {self.utilisation:.1%}")
        if self.unknown_loops:
            out.append(f"{self.unknown_loops} loops do not tell their rounds, and count once")
        return out


def report(compiled, mesh, state, model_flops):
    """The `Report` of a compiled step.

    Args:
      compiled: of `jax.jit(...).lower(...).compile()`, or the compiler's error where it ran out of memory.
      mesh: of the slice's devices.
      state: the step's state, shapes with shardings.
      model_flops: of a step; see `Report`.
    """
    where = slice_of(mesh)
    own = {name: held(state.get(key, ())) for name, key in (("parameters", "params"), ("average", "ema"))}
    own |= {"optimizer": held(state["opt_state"]), "offloaded": held(state["opt_state"], host=True)}
    own["unsharded"] = held([s for s in jax.tree.leaves(state) if mesh.size > 1 and s.sharding.is_fully_replicated])
    known = dict(
        device_kind=mesh.devices.flat[0].device_kind, devices=mesh.size, per_chip=where.per_chip,
        capacity=where.chip.memory, gradients=own["parameters"], model_flops=model_flops, **own,
    )  # fmt: skip
    if isinstance(compiled, Exception):
        return Report(temporaries=None, total=needed(compiled, held(state)), **known)
    used = compiled.memory_analysis()
    total = used.argument_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes + used.temp_size_in_bytes
    program = hlo.parse(compiled.as_text())
    within, between = collectives.collectives(program, len(where.coordinates)), collectives.between_slices(program)
    found = [(each.kind, each) for each in within] + [(f"{each.kind} between slices", each) for each in between]
    moved = {}
    for kind, each in found:
        count, size = moved.get(kind, (0, 0))
        moved[kind] = count + each.times, size + each.times * each.received
    largest = sorted(found, key=lambda pair: -pair[1].times * pair[1].received)[:LARGEST]
    largest = tuple(
        {"kind": kind, "shapes": c.shapes, "times": c.times, "bytes": c.times * c.received, "source": c.source}
        for kind, c in largest
    )
    flops, size = work.flops(program), work.hbm_bytes(program)
    links = collectives.seconds(within, where.chip, where.coordinates, where.grid)
    network = sum(c.times * c.received for c in between) / where.chip.network if between else 0.0
    return Report(
        temporaries=used.temp_size_in_bytes, total=total, flops=flops, hbm_bytes=size, moved=moved, largest=largest,
        roofline=Roofline(flops / where.chip.flops, size / where.chip.bandwidth, links, network),
        unknown_loops=len(program.unknown_loops), **known,
    )  # fmt: skip


def needed(error, arguments):
    """Bytes of memory that a program would take, from the compiler's refusal; None where it does not tell.

    Args:
      error: the compiler's.
      arguments: bytes that the program is given, which some of its messages leave out.
    """
    size = r"([\d.]+)([KMGT]?)"
    temporaries = re.search(rf"required for HLO temporaries \({size}\)", str(error))
    told = temporaries or re.search(rf"Used {size}i?B? of \S+ hbm", str(error))
    if not told:
        return None
    return float(told[1]) * 1024 ** " KMGT".index(told[2] or " ") + (arguments if temporaries else 0)
