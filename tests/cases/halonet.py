"""HaloNet against timm: all kinds of attention with and without stride, on maps that are no squares.

The stages' mixers are spelled out on both sides. A window of three does not divide its stride: the result is pooled.
"""

from golden import Case
from vision_jax.models.halonet import Blocks, Mixer

RESNET = (
    Blocks(16, 2, (1,), Mixer("lambda", 2, 4, radius=3), 1, 0.5, 4),
    Blocks(16, 1, (0,), Mixer("halo", 2, window_size=4, halo=1), 2, 0.5),
    Blocks(24, 1, (0,), Mixer("global", 2, 4), 2, 0.5),
)
REGNET = (
    Blocks(8, 2, (1,), Mixer("lambda", 2, 4, radius=None), 1, 2, 4),
    Blocks(16, 2, (0, 1), Mixer("halo", 2, key_ratio=0.6, window_size=3, halo=2), 2, 2),
)


def _conv(c, br):
    return dict(type="bottle", d=1, c=c, s=1, gs=4, br=br)


def _attend(kind, c, s, br=0.5, **kwargs):
    return dict(type="self_attn", d=1, c=c, s=s, br=br, self_attn_layer=kind, self_attn_kwargs=kwargs)


CASES = {
    "halonet": Case(
        "lamhalobotnet50ts_256",
        dict(stages=RESNET, stem_dims=(6, 8, 16), inner_attention="se", num_classes=7, img_size=(32, 48)),
        "timm:lamhalobotnet50ts_256",
        dict(
            blocks=[
                [_conv(16, 0.5), _attend("lambda", 16, 1, num_heads=2, dim_head=4, r=3)],
                [_attend("halo", 16, 2, num_heads=2, block_size=4, halo_size=1)],
                [_attend("bottleneck", 24, 2, num_heads=2, dim_head=4)],
            ],
            img_size=(32, 48),
            num_classes=7,
            stem_chs=16,
            stem_type="tiered",
            stem_pool="",
            act_layer="silu",
            attn_layer="se",
        ),
        size=(32, 48),
        maker="references.halonet:network",
    ),
    "haloregnetz": Case(
        "haloregnetz_b",
        dict(
            stages=REGNET,
            stem_dims=(8,),
            stem_kernel=7,
            stem_pool=True,
            inner_attention="eca",
            head_dim=16,
            num_classes=7,
            img_size=(24, 48),
        ),
        "timm:haloregnetz_b",
        dict(
            blocks=[
                [_conv(8, 2), _attend("lambda", 8, 1, 2, num_heads=2, dim_head=4, r=None)],
                [_attend("halo", 16, s, 2, num_heads=2, block_size=3, halo_size=2, qk_ratio=0.6) for s in (2, 1)],
            ],
            img_size=(24, 48),
            num_classes=7,
            stem_chs=8,
            stem_type="7x7",
            downsample="",
            num_features=16,
            act_layer="silu",
            attn_layer="eca",
            block_kwargs=dict(bottle_in=True, linear_out=True),
        ),
        size=(24, 48),
        maker="references.halonet:network",
    ),
    "halonet_bat": Case(
        "bat_resnext26ts",
        dict(
            stages=(Blocks(32, 1, (), None, 1, 0.5), Blocks(32, 1, (), None, 2, 1.0)),
            stem_dims=(8,),
            bat_size=2,
            bat_drop_rate=0.0,
            num_classes=7,
            img_size=(16, 32),
        ),
        "timm:bat_resnext26ts",
        dict(
            blocks=[[dict(type="bottle", d=1, c=32, s=s, br=s / 2)] for s in (1, 2)],
            img_size=(16, 32),
            num_classes=7,
            stem_chs=[8],
            act_layer="silu",
            attn_layer="bat",
            attn_kwargs=dict(block_size=2),
        ),
        size=(16, 32),
        maker="references.halonet:network",
    ),
}
