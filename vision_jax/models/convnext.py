"""ConvNeXt: A ConvNet for the 2020s (Liu et al., 2022, arXiv:2201.03545), and ConvNeXt V2: Co-designing and Scaling
ConvNets with Masked Autoencoders (Woo et al., 2023, arXiv:2301.00808).

A ResNet modernised until it looks like a Swin: patches, stages, and a block of a 7x7 depthwise convolution, a norm and
an MLP with GELU on one residual branch. V2 trades the branch's learned scale for global response normalisation inside
the MLP. Official repositories: facebookresearch/ConvNeXt and facebookresearch/ConvNeXt-V2; compared here with timm's,
whose own variants come with it: overlapping stems (ols), norm before pooling (hnf), norms that only rescale (rms).
Of V2 only timm's files are read: the official ones keep GRN's parameters as [1, 1, 1, C].
"""

import dataclasses
import functools
import re
from typing import ClassVar

from flax import nnx

from vision_jax.layers.conv import Conv
from vision_jax.layers.convnext_block import ConvNeXtBlock
from vision_jax.layers.downsample import DOWN_IN_SEQUENCE, Downsample
from vision_jax.layers.drop import linear_rates
from vision_jax.layers.head import PooledHead
from vision_jax.layers.linear import Linear, PointwiseConv
from vision_jax.layers.mlp import Mlp, gelu
from vision_jax.layers.norm import LayerNorm
from vision_jax.layers.response_norm import GlobalResponseNorm
from vision_jax.layers.rms_norm import RMSNorm, SimpleNorm
from vision_jax.layers.stack import Stack
from vision_jax.models.base import FeatureInfo, ModelConfig, Stage, StagedModel
from vision_jax.registry import INCEPTION_MEAN, INCEPTION_STD, check, register

NORMS = {"layer": LayerNorm, "rms": RMSNorm, "simple": SimpleNorm}
STEMS = ("patch", "overlap", "overlap_tiered", "overlap_act")


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(ModelConfig):
    """A ConvNeXt.

    `stem`: "patch", a 4x4 convolution of stride 4; or "overlap", two 3x3 of stride 2, of half the channels first
    ("overlap_tiered") or with a GELU between ("overlap_act"). `norm`: "layer", "rms" or "simple" (divides by the
    standard deviation). `layer_scale_init`: None for no scale. `response_norm`: V2's. `head_norm_first`: the norm
    comes before the pooling. `head_hidden`: channels of a hidden layer of the head. `conv_mlp`: weight files hold the
    MLPs as 1x1 convolutions; the computation is the same.
    """

    stem: str = "patch"
    depths: tuple = (3, 3, 9, 3)
    embed_dims: tuple = (96, 192, 384, 768)
    kernel_size: int = 7
    mlp_ratio: float = 4.0
    norm: str = "layer"
    norm_epsilon: float = 1e-6
    layer_scale_init: float | None = 1e-6
    response_norm: bool = False
    head_norm_first: bool = False
    head_hidden: int | None = None
    conv_mlp: bool = False
    scan_blocks: bool = False

    def __post_init__(self):
        check(self.stem in STEMS, f"stem={self.stem!r}: one of {STEMS}")
        check(self.norm in NORMS, f"norm={self.norm!r}: one of {tuple(NORMS)}")
        check(
            len(self.depths) == len(self.embed_dims),
            f"depths={self.depths} and embed_dims={self.embed_dims} differ in length",
        )
        check(self.kernel_size % 2 == 1, f"kernel_size={self.kernel_size} must be odd")
        check(not (self.head_norm_first and self.head_hidden), "head_hidden is for head_norm_first=False")


def _stem(c, norm):
    """The layers from images to a quarter of their size."""
    dim = c.embed_dims[0]
    if c.stem == "patch":
        return nnx.Sequential(Conv(c.in_chans, dim, 4, stride=4, padding=0, dtype=c.dtype), norm(dim))
    middle = _multiple_of_8(dim // 2) if c.stem == "overlap_tiered" else dim
    first, second = (Conv(i, o, 3, stride=2, dtype=c.dtype) for i, o in ((c.in_chans, middle), (middle, dim)))
    return nnx.Sequential(first, *([gelu] if c.stem == "overlap_act" else []), second, norm(dim))


def _multiple_of_8(channels):
    """The nearest multiple of 8, not below 90 % (MobileNet's rule)."""
    nearest = max(8, (channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


_TIMM = (
    (r"^stem\.layers\.", "stem."),
    *DOWN_IN_SEQUENCE,
    (r"\.mlp\.norm\.", ".mlp.grn."),
    (r"\.ls\.gamma$", ".gamma"),
)
_OFFICIAL = (
    *_TIMM,
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc", ".pwconv"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)
_HF = (
    *_OFFICIAL,
    (r"^downsample_layers\.0\.0\.", "convnext.embeddings.patch_embeddings."),
    (r"^downsample_layers\.0\.1\.", "convnext.embeddings.layernorm."),
    (r"^downsample_layers\.(\d+)\.", r"convnext.encoder.stages.\1.downsampling_layer."),
    (r"^stages\.(\d+)\.", r"convnext.encoder.stages.\1.layers."),
    (r"(layers\.\d+)\.norm\.", r"\1.layernorm."),
    (r"\.gamma$", ".layer_scale_parameter"),
    (r"^norm\.", "convnext.layernorm."),
    (r"^head\.", "classifier."),
)


class ConvNeXt(StagedModel):
    """Images [B, H, W, C] -> logits [B, num_classes]."""

    classifier = ("head.fc",)
    torch_names: ClassVar = {"timm": _TIMM, "official": _OFFICIAL, "hf": _HF}

    def __init__(self, config):
        c = self.config = config
        norm = functools.partial(NORMS[c.norm], epsilon=c.norm_epsilon, dtype=c.dtype)
        response_norm = functools.partial(GlobalResponseNorm, dtype=c.dtype) if c.response_norm else None
        self.stem = _stem(c, norm)
        stages, info, din = [], [], c.embed_dims[0]
        for i, (dim, rates) in enumerate(zip(c.embed_dims, linear_rates(c.drop_path_rate, c.depths), strict=True)):

            def block(index, dim=dim):
                linear = PointwiseConv if c.conv_mlp else Linear
                mlp = Mlp(dim, int(dim * c.mlp_ratio), norm=response_norm, linear=linear, dtype=c.dtype)
                return ConvNeXtBlock(
                    dim, c.kernel_size, mlp=mlp, norm=norm, layer_scale=c.layer_scale_init, dtype=c.dtype
                )

            down = Downsample(din, dim, 2, stride=2, padding=0, norm=norm, dtype=c.dtype) if i else None
            stages.append(Stage(down, Stack(block, rates, scan=c.scan_blocks, remat=c.remat)))
            info.append(FeatureInfo(f"stages.{i}", dim, 4 * 2**i))
            din = dim
        self.stages, self.feature_info = nnx.List(stages), tuple(info)
        if c.head_norm_first:
            self.norm_pre = norm(din)
        self.head = PooledHead(
            din, c.num_classes, norm=None if c.head_norm_first else norm, hidden=c.head_hidden, drop=c.drop_rate,
            dtype=c.dtype,
        )  # fmt: skip


_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711), "img_size": 256}
_DINOV3 = {"dinov3_lvd1689m": {"num_classes": 0, "crop_pct": 1.0, "licence": "dinov3-license"}}
_EUPE = {
    "eupe_lvd1689m": {
        "num_classes": 0,
        "crop_pct": 1.0,
        "img_size": 256,
        "licence": "fair-noncommercial-research-license",
    }
}


def _tags(names, clip_dim=0):
    """{tag: preprocessing} of published weights, which their names tell: data sets in order, then the image size."""
    out = {}
    for name in names.split():
        fields = dict(_CLIP) if name.startswith("clip") else {}
        if size := re.search(r"_(\d{3})$|^r(\d{3})_", name):
            fields["img_size"] = int(size[1] or size[2])
            if size[1] and fields["img_size"] >= 384 and "laiona" not in name:
                fields["crop_mode"] = "squash"
        data = re.sub(r"_\d{3}$", "", name)
        if data.endswith(("in12k", "in22k")):
            fields["num_classes"] = 11821 if data.endswith("in12k") else 21841
        elif name.startswith("clip") and not data.endswith("in1k"):
            fields["num_classes"] = clip_dim
        elif name == "fcmae":
            fields["num_classes"] = 0
        if size or name.startswith("clip"):
            fields["crop_pct"] = 1.0
        elif data.startswith("in12k"):
            fields["crop_pct"] = 0.95
        out[name] = fields
    return out


_FB = _tags("fb_in22k_ft_in1k fb_in1k fb_in22k_ft_in1k_384 fb_in22k")
_IN12K = _tags("in12k_ft_in1k in12k_ft_in1k_384 in12k")
_FCMAE = _tags("fcmae_ft_in1k fcmae")
_FCMAE_IN22K = {**_tags("fcmae_ft_in22k_in1k fcmae_ft_in22k_in1k_384"), **_FCMAE}


def _convnext(name, depths, dim, params, gmacs, tags, **fields):
    preprocessing = {key: fields.pop(key) for key in ("crop_pct", "mean", "std") if key in fields}
    register(
        name, ConvNeXt, ConvNeXtConfig(depths=depths, embed_dims=(dim, 2 * dim, 4 * dim, 8 * dim), **fields),
        params=params, gmacs=gmacs, paper="2201.03545", licence="apache-2.0", tags=tags, **preprocessing,
    )  # fmt: skip


def _convnext_v2(name, depths, dim, params, gmacs, tags, licence="cc-by-nc-4.0", **fields):
    config = ConvNeXtConfig(
        depths=depths, embed_dims=(dim, 2 * dim, 4 * dim, 8 * dim), response_norm=True, layer_scale_init=None, **fields
    )
    register(name, ConvNeXt, config, params=params, gmacs=gmacs, paper="2301.00808", licence=licence, tags=tags)


# fmt: off
# timm's own; their multiply-adds are counted
_convnext("convnext_zepto_rms", (2, 2, 4, 2), 32, 2_155_656, 0.30, ("ra4_e3600_r224_in1k",), conv_mlp=True,
          norm="simple", mean=INCEPTION_MEAN, std=INCEPTION_STD)
_convnext("convnext_zepto_rms_ols", (2, 2, 4, 2), 32, 2_164_232, 0.34, ("ra4_e3600_r224_in1k",), conv_mlp=True,
          norm="simple", stem="overlap_act", mean=INCEPTION_MEAN, std=INCEPTION_STD, crop_pct=0.9)
_convnext("convnext_atto", (2, 2, 6, 2), 40, 3_695_520, 0.55, ("d2_in1k",), conv_mlp=True)
_convnext("convnext_atto_ols", (2, 2, 6, 2), 40, 3_702_912, 0.58, ("a2_in1k",), conv_mlp=True, stem="overlap_tiered")
_convnext("convnext_atto_rms", (2, 2, 6, 2), 40, 3_693_040, 0.55, ("",), conv_mlp=True, norm="rms")
_convnext("convnext_femto", (2, 2, 6, 2), 48, 5_217_784, 0.79, ("d1_in1k",), conv_mlp=True)
_convnext("convnext_femto_ols", (2, 2, 6, 2), 48, 5_226_520, 0.82, ("d1_in1k",), conv_mlp=True, stem="overlap_tiered")
_convnext("convnext_pico", (2, 2, 6, 2), 64, 9_045_672, 1.37, ("d1_in1k",), conv_mlp=True)
_convnext("convnext_pico_ols", (2, 2, 6, 2), 64, 9_061_928, 1.43, ("d1_in1k",), conv_mlp=True, stem="overlap_tiered",
          crop_pct=0.95)
_convnext("convnext_nano", (2, 2, 8, 2), 80, 15_593_560, 2.46,
          _tags("in12k_ft_in1k d1h_in1k r384_in12k_ft_in1k in12k r384_in12k r384_ad_in12k"), conv_mlp=True,
          crop_pct=0.95)
_convnext("convnext_nano_ols", (2, 2, 8, 2), 80, 15_649_560, 2.65, ("d1h_in1k",), conv_mlp=True, stem="overlap",
          crop_pct=0.95)
_convnext("convnext_tiny_hnf", (3, 3, 9, 3), 96, 28_589_128, 4.47, ("a2h_in1k",), conv_mlp=True, head_norm_first=True,
          crop_pct=0.95)
# the paper's
_convnext("convnext_tiny", (3, 3, 9, 3), 96, 28_589_128, 4.5, {**_IN12K, **_FB, **_DINOV3, **_EUPE})
_convnext("convnext_small", (3, 3, 27, 3), 96, 50_223_688, 8.7, {**_IN12K, **_FB, **_DINOV3, **_EUPE})
_convnext("convnext_base", (3, 3, 27, 3), 128, 88_591_464, 15.4,
          {**_FB, **_tags("clip_laion2b_augreg_ft_in12k_in1k clip_laion2b_augreg_ft_in12k_in1k_384"
                          " clip_laion2b_augreg_ft_in1k clip_laiona_augreg_ft_in1k_384 clip_laion2b_augreg_ft_in12k"
                          " clip_laion2b clip_laion2b_augreg clip_laiona clip_laiona_320 clip_laiona_augreg_320", 640),
           **_DINOV3, **_EUPE})
_convnext("convnext_large", (3, 3, 27, 3), 192, 197_767_336, 34.4, {**_FB, **_DINOV3})
_convnext("convnext_large_mlp", (3, 3, 27, 3), 192, 200_128_168, 70.21,
          _tags("clip_laion2b_soup_ft_in12k_in1k_320 clip_laion2b_soup_ft_in12k_in1k_384 clip_laion2b_augreg_ft_in1k"
                " clip_laion2b_augreg_ft_in1k_384 clip_laion2b_soup_ft_in12k_320 clip_laion2b_augreg_ft_in12k_384"
                " clip_laion2b_soup_ft_in12k_384 clip_laion2b_augreg clip_laion2b_ft_320"
                " clip_laion2b_ft_soup_320", 768),
          head_hidden=1536, img_size=320)
_convnext("convnext_xlarge", (3, 3, 27, 3), 256, 350_196_968, 60.9,
          _tags("fb_in22k_ft_in1k fb_in22k_ft_in1k_384 fb_in22k"))
_convnext("convnext_xxlarge", (3, 4, 30, 3), 384, 846_471_016, 198.09,
          _tags("clip_laion2b_soup_ft_in1k clip_laion2b_soup_ft_in12k clip_laion2b_soup clip_laion2b_rewind", 1024),
          norm_epsilon=1e-5, img_size=256)

_convnext_v2("convnextv2_atto", (2, 2, 6, 2), 40, 3_708_400, 0.55, _FCMAE, conv_mlp=True)
_convnext_v2("convnextv2_femto", (2, 2, 6, 2), 48, 5_233_240, 0.79, _FCMAE, conv_mlp=True)
_convnext_v2("convnextv2_pico", (2, 2, 6, 2), 64, 9_066_280, 1.37, _FCMAE, conv_mlp=True)
_convnext_v2("convnextv2_nano", (2, 2, 8, 2), 80, 15_623_800, 2.46, _FCMAE_IN22K, conv_mlp=True)
_convnext_v2("convnextv2_tiny", (3, 3, 9, 3), 96, 28_635_496, 4.47, _FCMAE_IN22K)
_convnext_v2("convnextv2_small", (3, 3, 27, 3), 96, 50_318_440, 8.71, ("",), "apache-2.0")
_convnext_v2("convnextv2_base", (3, 3, 27, 3), 128, 88_717_800, 15.4, _FCMAE_IN22K)
_convnext_v2("convnextv2_large", (3, 3, 27, 3), 192, 197_956_840, 34.4, _FCMAE_IN22K)
_convnext_v2("convnextv2_huge", (3, 3, 27, 3), 352, 660_289_640, 337.9,
             {**_tags("fcmae_ft_in22k_in1k_384 fcmae_ft_in22k_in1k_512"),
              **{tag: {**fields, "img_size": 224} for tag, fields in _FCMAE.items()}}, img_size=384)
# fmt: on
