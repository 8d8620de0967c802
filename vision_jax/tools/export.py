"""Models for other programs: weight files with a reference's names, and compiled-ahead forward passes.

    python -m vision_jax.tools.export resnet50 --weights runs/mine --output model.safetensors          # for timm
    python -m vision_jax.tools.export resnet50 --weights runs/mine --output model.jax --platform tpu   # for jax.export

The second is StableHLO with the weights in it, for any batch size: `jax.export.deserialize(data).call(images)` runs it.
With --deploy batch norms are merged into the layers beside them first, where the family can (`model.reparameterize()`).
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
from jax import export

from vision_jax.errors import InputError, unknown
from vision_jax.functional import apply, merge, split
from vision_jax.layers.conv import pair
from vision_jax.registry import create_model
from vision_jax.train.config import literal, read_config
from vision_jax.train.warm_start import load_variables
from vision_jax.weights.save import save_weights

PLATFORMS = ("cpu", "cuda", "tpu")


def export_forward(model, platform):
    """The forward pass with its weights, serialised for one platform.

    Args:
      model: a model with parameters.
      platform: "cpu", "cuda" or "tpu"; it need not be here.

    Returns:
      Bytes for `jax.export.deserialize`; the call takes images [B, H, W, C] float32 of any B, and gives logits.

    Raises:
      InputError: an unknown platform.
    """
    if platform not in PLATFORMS:
        raise unknown("platform", platform, PLATFORMS)
    static, variables = split(model)
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *pair(model.config.img_size), model.config.in_chans), jnp.float32)
    forward = jax.jit(lambda images: apply(static, variables, images)[0])
    return bytes(export.export(forward, platforms=[platform])(images).serialize())


def load(name, weights, fields):
    """A model by name with weights from a run's workdir, a file or a hub id; a run tells its own config fields."""
    config = pathlib.Path(weights) / "config.json"
    if config.is_file():
        own = {key: value for key, value in read_config(config).model.items() if key != "name"}
        fields = {**own, **fields}
    model = create_model(name, abstract=True, **fields)
    static, _ = split(model)
    return merge(static, load_variables(static, weights))


def read_fields(texts):
    """["NAME=VALUE", ...] -> {name: value}, config fields from a command line."""
    for text in texts:
        if "=" not in text:
            raise InputError(f"--field={text}: NAME=VALUE is wanted, as --field num_classes=10")
    return {name: literal(value) for name, value in (text.split("=", 1) for text in texts)}


def main(argv=None):
    """The command."""
    parser = argparse.ArgumentParser(
        prog="vision_jax.tools.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a model's name")
    parser.add_argument("--weights", required=True, help="a run's workdir, a weight file, or hf-hub:...")
    parser.add_argument("--output", required=True, help="a .safetensors or .npz file, or another for --platform")
    parser.add_argument("--names", default="timm", help="whose names the weights get: timm, hf, ours, ...")
    parser.add_argument("--platform", help="export the forward pass for cpu, cuda or tpu instead")
    parser.add_argument("--deploy", action="store_true", help="merge batch norms first; weights then need --names ours")
    parser.add_argument("--field", action="append", default=[], metavar="NAME=VALUE", help="of the model's config")
    args = parser.parse_args(argv)
    try:
        model = load(args.name, args.weights, read_fields(args.field))
        if args.deploy:
            if not args.platform and args.names != "ours":
                raise InputError(f"--names={args.names}: no reference names a deployed model's weights: --names ours")
            model = model.reparameterize()
        if args.platform:
            pathlib.Path(args.output).write_bytes(export_forward(model, args.platform))
        else:
            save_weights(model, args.output, names=args.names)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}: {pathlib.Path(args.output).stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
