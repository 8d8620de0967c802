"""The residual block on which most families stand, and that of maps with batch norms."""

from flax import nnx

from vision_jax.functional import tap
from vision_jax.layers.drop import drop_path
from vision_jax.layers.norm import normalise
from vision_jax.layers.scale import LayerScale
from vision_jax.mesh import constrain_batch, split_tokens


class Block(nnx.Module):
    """Two residual branches, x + drop_path(scale(mixer(norm(x)))): tokens or pixels mix in the first, then channels.

    The general architecture of MetaFormer (Yu et al., 2022, arXiv:2111.11418, equations 2 and 3), normalised first;
    or x + drop_path(scale(norm(mixer(x)))) with `norm_last` (Swin V2: Liu et al., 2022, arXiv:2111.09883, figure 1).

    Args:
      dim: channels.
      din: channels in, where they are others; `shortcut`: the module that makes `dim` of them for the first branch to
        be added to, on the map that the token mixer gives.
      attn: the token mixer, called as mixer(x, train, *context).
      mlp: the channel mixer, called as mlp(x, train).
      norm: `(dim) -> module`.
      norm_last: normalise what the mixers give, not what they get.
      layer_scale: initial value of the branches' scales, or None for no scales.
      scale: their layer.
      res_scale: initial value of the shortcuts' scales (NormFormer: Shleifer et al., 2021, arXiv:2110.09456), or None.
      positions: modules that add positions to the map before each branch (CPVT, as in DaViT), or None.
      dtype: dtype of the computation.
    """

    def __init__(
        self, dim, *, din=None, shortcut=None, attn, mlp, norm, norm_last=False, layer_scale=None, scale=LayerScale,
        res_scale=None, positions=(None, None), dtype,
    ):  # fmt: skip
        self.norm_last, self.shortcut = norm_last, shortcut
        self.cpe1, self.cpe2 = positions
        self.norm1, self.attn = norm(din or dim), attn
        self.norm2, self.mlp = norm(dim), mlp
        self.ls1, self.ls2, self.rs1, self.rs2 = (
            None if init is None else scale(dim, init, dtype=dtype)
            for init in (layer_scale, layer_scale, res_scale, res_scale)
        )

    def __call__(self, x, train=None, *context):
        x = self.cpe1(x) if self.cpe1 else x
        if self.norm_last:
            y = self.norm1(self.attn(x, train, *context))
        else:
            y = self.attn(normalise(self.norm1, x, train), train, *context)
        y = tap(self, "attn", y)
        x = self.shortcut(x) if self.shortcut else x
        x = split_tokens((self.rs1(x) if self.rs1 else x) + drop_path(self.ls1(y) if self.ls1 else y, train))
        x = self.cpe2(x) if self.cpe2 else x
        y = self.norm2(self.mlp(x, train)) if self.norm_last else self.mlp(normalise(self.norm2, x, train), train)
        y = tap(self, "mlp", y)
        x = (self.rs2(x) if self.rs2 else x) + drop_path(self.ls2(y) if self.ls2 else y, train)
        return tap(self, "output", constrain_batch(x))


class MapBlock(nnx.Module):
    """A token mixer, where there is one, and an MLP, both without norms before: [B, H, W, C] -> [B, H, W, C].

    With a pool as mixer it is EfficientFormer's MB4D (Li et al., 2022, arXiv:2206.01191).

    Args:
      dim: channels.
      attn: the token mixer, called as attn(x, train), or None; mlp: called as mlp(x, train).
      layer_scale: initial value of the branches' scales, or None for no scales.
      scale: their layer.
      dtype: dtype of the computation.
    """

    def __init__(self, dim, *, attn, mlp, layer_scale=None, scale=LayerScale, dtype):
        self.attn, self.mlp = attn, mlp
        scaled = (attn and layer_scale is not None, layer_scale is not None)
        self.ls1, self.ls2 = (scale(dim, layer_scale, dtype=dtype) if there else None for there in scaled)

    def __call__(self, x, train=None):
        if self.attn:
            y = tap(self, "attn", self.attn(x, train))
            x = x + drop_path(self.ls1(y) if self.ls1 else y, train)
        y = tap(self, "mlp", self.mlp(x, train))
        x = x + drop_path(self.ls2(y) if self.ls2 else y, train)
        return tap(self, "output", constrain_batch(x))
