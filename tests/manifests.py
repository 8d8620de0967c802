"""Where the references' manifests lie: for each family {variant: names and shapes, counts, preprocessing}.

make_manifests.py makes them of what packages offer. For `UNPACKAGED` families the same functions were given modules
around the authors' code, which is not kept here; each variant's record names function and version as the family's
golden does (tests/cases/*.py say which file of which repository that is). Their preprocessing is what the authors'
evaluation scripts do; LookupViT's reference has none.
"""

import gzip
import json

import golden

UNPACKAGED = {"gfnet", "l2vit", "lookupvit", "nat", "ravlt", "vir"}


def path(family):
    return golden.DIRECTORY / "manifests" / f"{family}.json.gz"


def save(family, variants):
    path(family).parent.mkdir(parents=True, exist_ok=True)
    path(family).write_bytes(gzip.compress(json.dumps(variants, sort_keys=True).encode(), mtime=0))


def load(family):
    return json.loads(gzip.decompress(path(family).read_bytes()))


def packaged():
    """Families with a stored manifest whose references can be built."""
    stored = {path.name.removesuffix(".json.gz") for path in (golden.DIRECTORY / "manifests").glob("*.json.gz")}
    return sorted(stored - UNPACKAGED)
