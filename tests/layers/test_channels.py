from vision_jax.layers.channels import round_channels


def test_round_channels():
    """The nearest multiple of eight, half of one up; at least eight; at most a tenth lost."""
    assert [round_channels(n) for n in (1, 8, 11.9, 12, 20, 16 * 1.4, 32 * 0.35, 24 * 0.75)] == [
        8,
        8,
        16,
        16,
        24,
        24,
        16,
        24,
    ]
    assert round_channels(11.9, limit=0) == 8
    assert round_channels(100, divisor=32) == 96
