"""Pictures of what a model sees in images, written to a directory.

    python -m vision_jax.tools.visualize --model vit_tiny_patch16_224 --pretrained --image cat.jpg --out pictures
    python -m vision_jax.tools.visualize --model swin_tiny_patch4_window7_224 --weights runs/swin --image cat.jpg \\
        --image dog.jpg --out pictures attention bias erf

Kinds: `attention`, what each head of some layers attends to; `rollout`, attention through all layers (Abnar & Zuidema,
2020); `bias`, relative-position biases; `pca`, features as colours; `erf`, effective receptive fields (Luo et al.,
2016); `gradcam`, the evidence for a class (Selvaraju et al., 2017). By default all that the model can give.
"""

import argparse
import pathlib
import sys

from vision_jax.data.decode import open_image
from vision_jax.errors import InputError, unknown
from vision_jax.tools.export import load, read_fields
from vision_jax.tools.visualize.kinds import KINDS, picture, possible
from vision_jax.weights.pretrained import create_model


def main(argv=None):
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vision_jax.tools.visualize", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--model", required=True, help="a model's name")
    parser.add_argument("--weights", help="a run's workdir, a weight file, or hf-hub:...; else untrained")
    parser.add_argument("--pretrained", action="store_true", help="the published weights, downloaded")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="may be given several times")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the pictures go")
    parser.add_argument("--layers", default="*", help="a pattern of names, for attention and bias: 'blocks.1*'")
    parser.add_argument("--query", metavar="PLACE", help="whose attention: 'class', or 'down,right' in 0..1")
    parser.add_argument("--label", type=int, help="the class for gradcam, a number; the likeliest by default")
    parser.add_argument("--field", action="append", default=[], metavar="NAME=VALUE", help="of the model's config")
    args = parser.parse_args(argv)
    try:
        for file in write(args):
            print(f"wrote {file}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(args):
    """Writes the pictures; yields the files."""
    for kind in args.kinds:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    model, told = _model(args)
    kinds = args.kinds or [kind for kind in possible(model) if args.image or kind == "bias"]
    options = dict(layers=args.layers, query=_query(args.query), label=args.label, title=told)
    photos = {pathlib.Path(file): _photo(file) for file in args.image}
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        # one photograph fills an attention picture; the others take all
        for file, photo in photos.items() if kind == "attention" and photos else [(None, None)]:
            shown = picture(model, kind, list(photos.values()) if file is None else [photo], **options)
            path = out / (f"{kind}.png" if file is None else f"{kind}_{file.stem}.png")
            shown.save(path)
            yield path


def _model(args):
    """(the model, how the figures call it)."""
    if args.weights and args.pretrained:
        raise InputError("--weights and --pretrained: one of them")
    fields = read_fields(args.field)
    if args.weights:
        return load(args.model, args.weights, fields), args.model
    model = create_model(args.model, pretrained=args.pretrained, **fields)
    return model, args.model if args.pretrained else f"{args.model}, untrained"


def _photo(file):
    try:
        return open_image(pathlib.Path(file).read_bytes())
    except InputError as error:
        raise InputError(f"--image={file}: {error}") from error


def _query(place):
    if place is None or place == "class":
        return place
    try:
        query = tuple(map(float, place.split(",")))
    except ValueError:
        query = ()
    if len(query) != 2 or not all(0 <= part <= 1 for part in query):
        raise InputError(f"--query={place}: 'class', or how far down and right in 0..1, as --query 0.5,0.25")
    return query


if __name__ == "__main__":
    sys.exit(main())
