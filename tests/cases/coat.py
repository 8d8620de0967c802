"""CoaT against timm: four scales of which three exchange; and CoaT-Lite on maps that patches do not tile."""

from golden import Case


def _case(name, size, depths, dims, ratios, windows, **fields):
    ours = dict(depths=depths, embed_dims=dims, mlp_ratios=ratios, img_size=size, num_classes=7, windows=windows)
    theirs = dict(serial_depths=depths, embed_dims=dims, mlp_ratios=ratios, img_size=size, num_classes=7)
    theirs |= dict(num_heads=sum(heads for _, heads in windows), crpe_window=dict(windows))
    return Case(name, {**ours, **fields}, f"timm:{name}", {**theirs, **fields}, size=size)


CASES = {
    "coat": _case(
        "coat_tiny", (32, 64), (2, 0, 0, 0), (6, 12, 12, 12), (2, 2, 2, 2), ((3, 2), (1, 1)), parallel_depth=1
    ),
    "coat_lite": _case("coat_lite_tiny", (44, 76), (1, 1, 1, 1), (8, 12, 16, 20), (2, 1, 1, 1), ((3, 2),)),
}
