"""What a compiled program moves between devices."""

import re
from typing import NamedTuple

PRIME = 11  # examples on each device, and no parameter's dimension: its multiples tell activations from parameters


class Collective(NamedTuple):
    """One instruction: its kind ("all-gather", ...), the shapes of its results, the operation it stems from."""

    kind: str
    shapes: tuple
    source: str

    @property
    def moves_activations(self):
        """Whether a result has a dimension of examples, alone or merged with tokens or windows."""
        return any(n % PRIME == 0 for shape in self.shapes for n in shape)


def collectives(text):
    """The collectives in the text of a compiled program (HLO), one device's."""
    kinds = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
    found = []
    for line in text.splitlines():
        if match := re.match(rf"\s*(?:ROOT )?\S+ = (.*?) ({kinds})(?:-start)?\(", line):
            shapes = tuple(tuple(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", match[1]))
            source = re.search(r'op_name="([^"]*)"', line)
            found.append(Collective(match[2], shapes, source[1] if source else ""))
    return found
