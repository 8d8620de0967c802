import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vision_jax.data.augment import RAND_AUGMENT_OPS, RandAugment
from vision_jax.data.host_ops import RandomResizedCrop
from vision_jax.data.ops import split_ops
from vision_jax.errors import InputError


def picture(height=37, width=50, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def run(image, *ops, seed=0):
    host, _ = split_ops(ops)
    return host({"image": image, "label": 0}, np.random.default_rng(seed))["image"]


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


SMOOTH = np.linspace(0, 255, 16 * 24 * 3).reshape(16, 24, 3).astype(np.uint8)


def test_decode_rgb_and_grey():
    image = picture()
    assert np.array_equal(run(encoded(Image.fromarray(image)), "decode"), image)
    grey = image[:, :, 0]
    assert np.array_equal(run(encoded(Image.fromarray(grey)), "decode"), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(run(encoded(Image.fromarray(grey)), "decode(channels=1)"), grey[..., None])
    assert run(encoded(Image.fromarray(image)), "decode(channels=1)").shape == (37, 50, 1)


def test_decode_drops_transparency():
    image = picture(channels=4)
    assert np.array_equal(run(encoded(Image.fromarray(image)), "decode"), image[:, :, :3])


def test_decode_palette_with_and_without_transparency():
    image = Image.fromarray(SMOOTH).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(run(encoded(image), "decode"), expected)
    assert np.array_equal(run(encoded(image, transparency=bytes(range(16))), "decode"), expected)


def test_decode_cmyk_jpeg():
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[..., 0] = 255  # cyan: no red
    out = run(encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95), "decode")
    assert out.shape == (16, 16, 3)
    assert np.abs(out.astype(int) - [0, 255, 255]).max() <= 3


def test_decode_16_bit_keeps_the_upper_byte():
    values = np.array([[0, 255, 256, 30000, 65535]], np.uint16)
    out = run(encoded(Image.fromarray(values)), "decode(channels=1)")
    assert out.ravel().tolist() == [0, 0, 1, 117, 255]


def test_decode_turns_as_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    out = run(encoded(Image.fromarray(SMOOTH), exif=exif), "decode")
    assert np.array_equal(out, np.rot90(SMOOTH, -1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: b"", "empty"),
        (lambda: b"not an image at all", "not an image"),
        (lambda: encoded(Image.fromarray(SMOOTH), "JPEG")[:-200], "damaged"),
        (lambda: encoded(Image.fromarray(picture()))[:3000], "damaged"),
        (lambda: encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_decode_refuses(make, said):
    with pytest.raises(InputError, match=said):
        run(make(), "decode")


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8)])
def test_arrays_are_uint8_of_1_or_3_channels(image):
    with pytest.raises(InputError, match="uint8"):
        run(image, "decode")


@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "nearest"])
def test_resize_is_pillows(filter):
    image = picture()
    resample = getattr(Image.Resampling, filter.upper())
    expected = np.asarray(Image.fromarray(image).resize((20, 10), resample))
    assert np.array_equal(run(image, f"resize((10, 20), interpolation='{filter}')"), expected)
    shorter = np.asarray(Image.fromarray(image).resize((int(16 * 50 / 37), 16), resample))
    assert np.array_equal(run(image, f"resize(16, interpolation='{filter}')"), shorter)


def test_resize_antialiases():
    checks = np.indices((64, 64)).sum(0)[..., None] % 2 * np.uint8(255)
    assert np.ptp(run(checks.astype(np.uint8), "resize(16)")[2:-2, 2:-2].astype(int)) <= 2


def test_center_crop():
    image = picture()
    assert np.array_equal(run(image, "center_crop((10, 21))"), image[14:24, 14:35])  # 13.5 and 14.5 round to even
    padded = run(image, "center_crop((40, 20))")
    assert padded.shape == (40, 20, 3)
    assert np.array_equal(padded[1:38], image[:, 15:35])
    assert not padded[0].any()
    assert not padded[38:].any()


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_and_random_crop(mode):
    image = picture(8, 9)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode)
    assert np.array_equal(run(image, f"pad(2, mode='{mode}')"), padded)
    windows = {padded[i : i + 8, j : j + 8].tobytes() for i in range(5) for j in range(6)}
    seen = {run(image, f"random_crop(8, padding=2, mode='{mode}')", seed=s).tobytes() for s in range(300)}
    assert seen == windows


def test_random_crop_larger_than_the_image():
    with pytest.raises(InputError, match="larger than the image, 37x50"):
        run(picture(), "random_crop(40)")


def test_flip():
    image = picture()
    assert np.array_equal(run(image, "flip(1)"), image[:, ::-1])
    assert np.array_equal(run(image, "flip(0.0)"), image)
    assert 170 < sum(np.array_equal(run(image, "flip", seed=s), image) for s in range(400)) < 230


def test_random_resized_crop_windows_follow_scale_and_ratio():
    op = RandomResizedCrop(32, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    boxes = np.array([op.window(200, 100, np.random.default_rng(s)) for s in range(400)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 200
    assert bottom.max() <= 100
    area, ratio = (right - left) * (bottom - top) / 20000, (right - left) / (bottom - top)
    assert 0.195 < area.min() < 0.21
    assert 0.48 < area.max() < 0.51
    assert 0.49 < ratio.min() < 0.6
    assert 1.8 < ratio.max() < 2.05


def test_random_resized_crop_falls_back_to_the_middle():
    op = RandomResizedCrop(8, scale=(1.0, 1.0))
    assert op.window(400, 30, np.random.default_rng(0)) == (180, 0, 220, 30)
    assert op.window(30, 400, np.random.default_rng(0)) == (0, 180, 30, 220)


def test_random_resized_crop_resizes_the_window():
    image, op = picture(), RandomResizedCrop((10, 12))
    box = op.window(50, 37, np.random.default_rng(5))
    expected = Image.fromarray(image).crop(box).resize((12, 10), Image.Resampling.BICUBIC)
    assert np.array_equal(run(image, "random_resized_crop((10, 12))", seed=5), np.asarray(expected))


def test_color_jitter():
    image = picture()
    rng = np.random.default_rng(3)
    order, factor = rng.permutation(3), rng.uniform(0.6, 1.4)
    expected = np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))
    assert sorted(order) == [0, 1, 2]
    assert np.array_equal(run(image, "color_jitter(0.4, 0, 0)", seed=3), expected)
    assert len({run(image, "color_jitter(0.4, 0.4, 0.4)", seed=s).tobytes() for s in range(20)}) == 20


def test_three_augment_takes_each_of_three():
    image = Image.fromarray(SMOOTH)
    seen = {0: 0, 1: 0, 2: 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        which = int(rng.integers(3))
        if which == 0:
            expected = image.convert("L").convert("RGB")
        elif which == 1:
            expected = ImageOps.solarize(image, 128)
        else:
            expected = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
        seen[which] += 1
        assert np.array_equal(run(SMOOTH, "three_augment", seed=seed), np.asarray(expected))
    assert min(seen.values()) > 10


class Draws:
    """A generator whose coin always shows the given side."""

    def __init__(self, coin):
        self.coin = coin

    def random(self):
        return self.coin


def one(name, image, level=0.5, coin=0.0, **options):
    return np.asarray(RAND_AUGMENT_OPS[name](RandAugment(**options), Image.fromarray(image), level, Draws(coin)))


def test_rand_augment_point_ops():
    v = SMOOTH.astype(int)
    assert np.array_equal(one("invert", SMOOTH), 255 - v)
    assert np.array_equal(one("posterize", SMOOTH), v & 0b11000000)
    assert not one("posterize", SMOOTH, 1.0).any()
    assert np.array_equal(one("posterize", SMOOTH, 0.25, increasing=False), v & 0b10000000)
    assert np.array_equal(one("solarize", SMOOTH, 0.25), np.where(v < 192, v, 255 - v))
    assert np.array_equal(one("solarize", SMOOTH, 0.25, increasing=False), np.where(v < 64, v, 255 - v))
    assert np.array_equal(one("solarize_add", SMOOTH), np.where(v < 128, v + 55, v))


def test_rand_augment_enhancements_go_both_ways():
    image = Image.fromarray(SMOOTH)
    for coin, factor in ((0.0, 1.45), (0.9, 0.55)):
        expected = np.asarray(ImageEnhance.Brightness(image).enhance(factor))
        assert np.array_equal(one("brightness", SMOOTH, coin=coin), expected)
    expected = np.asarray(ImageEnhance.Contrast(image).enhance(1.0))
    assert np.array_equal(one("contrast", SMOOTH, increasing=False), expected)


def test_rand_augment_beyond_ten():
    def image(magnitude, highest):
        options = f"rand_augment(1, {magnitude}, std=0, increasing=False, prob=1, max_magnitude={highest})"
        return [run(SMOOTH, options, seed=seed) for seed in range(40)]

    stronger = [not np.array_equal(a, b) for a, b in zip(image(15, 15), image(10, 10), strict=True)]
    assert all(np.array_equal(a, b) for a, b in zip(image(10, 15), image(10, 10), strict=True))
    assert 20 < sum(stronger) < 40  # not what has no magnitude


def test_rand_augment_geometry_shows_the_fill():
    out = one("translate_x", SMOOTH, 1 / 0.45 / 4, coin=0.0, interpolation="nearest")  # a quarter: 6 of 24 columns
    assert np.array_equal(out[:, :18], SMOOTH[:, 6:])
    assert (out[:, 18:] == (124, 116, 104)).all()
    out = one("translate_y", SMOOTH, 1 / 0.45 / 4, coin=0.9, interpolation="nearest")
    assert np.array_equal(out[4:], SMOOTH[:12])
    out = one("rotate", SMOOTH, 1.0)
    assert np.array_equal(out, np.asarray(Image.fromarray(SMOOTH).rotate(30, 3, fillcolor=(124, 116, 104))))
    out = one("shear_x", SMOOTH, 1.0, interpolation="nearest")
    assert np.array_equal(out[0, :-1], SMOOTH[0, :-1])
    assert (out[15, -4:] == (124, 116, 104)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_runs_every_op_on_grey_and_colour(channels):
    for name in RAND_AUGMENT_OPS:
        for level in (0.0, 1.0):
            assert one(name, SMOOTH[:, :, :channels].squeeze(), level).dtype == np.uint8
    image = SMOOTH[:, :, :channels]
    seen = [run(image, "rand_augment", seed=s) for s in range(40)]
    assert {x.shape for x in seen} == {image.shape}
    # two layers, each applied with probability one half: a quarter and those without effect stay
    assert 2 < sum(np.array_equal(x, image) for x in seen) < 25


def test_ops_repeat_with_the_same_generator():
    ops = (
        "random_resized_crop(16)",
        "flip",
        "rand_augment(magnitude=7)",
        "three_augment",
        "color_jitter(0.3, 0.3, 0.3)",
    )
    assert np.array_equal(run(picture(), *ops, seed=4), run(picture(), *ops, seed=4))
    assert not np.array_equal(run(picture(), *ops, seed=4), run(picture(), *ops, seed=5))
