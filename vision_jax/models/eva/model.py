"""The model: a ViT with other positions, projections and norms."""

import dataclasses
import functools
from typing import ClassVar

from vision_jax.layers.attention import QKV, Attention, FreeKeysQKV
from vision_jax.layers.glu import GLU, GatedMlp
from vision_jax.layers.linear import Linear
from vision_jax.layers.mlp import Mlp
from vision_jax.layers.rotary import MixedFrequencies, MixedRotary, Rotary, random_factor
from vision_jax.models.vit import VisionTransformer, ViTConfig, settle
from vision_jax.parameters import Damped, Normal, trunc_normal, zeros
from vision_jax.registry import check


@dataclasses.dataclass(frozen=True)
class EvaConfig(ViTConfig):
    """An EVA.

    Attributes:
      key_bias: whether keys have a bias, where queries and values have.
      rotary: None, "index" for positions counted in patches, "centred", from -1 to 1, or "mixed", counted in patches
        and turned by learned frequencies that start from rotary_temperature.
      rotary_reference, rotary_temperature, rotary_offset, rotary_columns_first: as in `layers.rotary.Rotary`.
      rotary_rescale: training multiplies centred positions by one random number a batch, between 1 / rotary_rescale and
        rotary_rescale.
    """

    global_pool: str = "avg"
    key_bias: bool = False
    rotary: str | None = None
    rotary_reference: int | None = None
    rotary_temperature: float = 10_000.0
    rotary_offset: float = 0.0
    rotary_columns_first: bool = False
    rotary_rescale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        settle(self, distilled=False, act="gelu", qk_norm=False)
        kinds = (None, "index", "centred", "mixed")
        check(self.rotary in kinds, f"rotary={self.rotary!r}: one of {', '.join(map(repr, kinds))}")
        most = self.rotary_rescale
        check(most >= 1, f"rotary_rescale={most}: 1 or more")
        check(most == 1 or self.rotary == "centred", f"rotary_rescale={most} is for rotary='centred'")
        width = self.embed_dim // self.num_heads
        check(
            not self.rotary or width % 4 == 0,
            f"rotary={self.rotary!r} needs heads of 4 n channels, embed_dim / num_heads is {width}",
        )


class Eva(VisionTransformer):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    inert = (r"attn_pool\.kv\.bias\[0\]$",)  # of the blocks' keys it is turned, where they have one
    linen_names: ClassVar = {}
    token_init, head_init, pool_all = trunc_normal, Normal(2e-5), True

    def __init__(self, config):
        super().__init__(config)
        c, mixed = config, config.rotary == "mixed"
        width = c.embed_dim // c.num_heads
        self.rope = MixedFrequencies(c.depth, c.num_heads, width, c.rotary_temperature) if mixed else None

    @property
    def torch_names(self):
        """Where the hidden features are normalised, queries, keys and values lie apart, and so do the gate and what it
        gates; these, too, with centred positions.
        """
        c, names = self.config, [(r"\.ls(\d)\.gamma$", r".gamma_\1")]
        if c.mlp_norm:
            names.append((r"\.attn\.qkv\.bias$", (".attn.q_proj.bias", ".attn.v_proj.bias")))
            names.append((r"\.attn\.qkv\.", (".attn.q_proj.", ".attn.k_proj.", ".attn.v_proj.")))
        elif not c.key_bias:
            names.append((r"\.attn\.qkv\.bias$", (".attn.q_bias", ".attn.v_bias")))
        if c.mlp == "swiglu" and (c.mlp_norm or c.rotary == "centred"):
            names.append((r"\.mlp\.fc1\.", (".mlp.fc1_g.", ".mlp.fc1_x.")))
        return {"timm": tuple(names)}

    def block_inputs(self):
        """The learned frequencies of each block, [depth, 2, heads, head_dim / 2], or None."""
        return self.rope() if self.rope else None

    def block_context(self, train=None):
        """What training multiplies all places by."""
        most = self.config.rotary_rescale
        return (random_factor(train, most),) if train and most > 1 else ()

    def make_attention(self, index):
        """The token mixer of a block."""
        c, rotary = self.config, None
        if c.rotary == "mixed":
            rotary = MixedRotary(self.grid, self.prefix)
        elif c.rotary:
            centred = c.rotary == "centred"
            rotary = Rotary(
                self.grid, self.prefix, c.rotary_temperature, c.rotary_reference, c.rotary_offset,
                c.rotary_columns_first, centred=centred, halves=centred,
            )  # fmt: skip
        return Attention(
            c.embed_dim, c.num_heads, qkv_bias=c.qkv_bias, rotary=rotary,
            norm=self.make_norm if c.attn_norm else None, attn_drop=c.attn_drop_rate, proj_drop=c.proj_drop_rate,
            qkv=QKV if c.key_bias else FreeKeysQKV, linear=functools.partial(Linear, init=Damped(trunc_normal)),
            dtype=c.dtype,
        )  # fmt: skip

    def make_mlp(self, index):
        """The channel mixer of a block."""
        c, last = self.config, functools.partial(Linear, init=Damped(trunc_normal))
        kw = dict(norm=self.make_norm if c.mlp_norm else None, drop=c.proj_drop_rate, dtype=c.dtype)
        hidden = int(c.embed_dim * c.mlp_ratio)
        if c.mlp == "swiglu":
            glu = functools.partial(GLU, init=trunc_normal, bias_init=zeros)
            return GatedMlp(c.embed_dim, hidden, glu=glu, linear=last, **kw)
        return Mlp(c.embed_dim, hidden, last=last, **kw)
