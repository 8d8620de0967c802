"""Where the references' manifests lie: for each family {variant: names and shapes, counts, preprocessing}."""

import gzip
import json

import golden


def path(family):
    return golden.DIRECTORY / "manifests" / f"{family}.json.gz"


def save(family, variants):
    path(family).parent.mkdir(parents=True, exist_ok=True)
    path(family).write_bytes(gzip.compress(json.dumps(variants, sort_keys=True).encode(), mtime=0))


def load(family):
    return json.loads(gzip.decompress(path(family).read_bytes()))


def families():
    """Families with a stored manifest."""
    return sorted(p.name.removesuffix(".json.gz") for p in (golden.DIRECTORY / "manifests").glob("*.json.gz"))
