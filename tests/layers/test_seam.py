"""The place at which fusions on CPUs stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.layers.mlp import gelu
from vision_jax.layers.seam import seam


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_nothing_changes(dtype):
    with jax.enable_x64(True):
        kind = jnp.finfo(dtype)
        x = jnp.array([0, -0.0, 1 / 3, -kind.max, kind.max, kind.tiny, kind.eps, np.inf, -np.inf, np.nan], dtype)
        y, slope = jax.jvp(jax.jit(seam), (x,), (x,))
        for found in (y, slope):
            assert found.dtype == x.dtype
            np.testing.assert_array_equal(np.asarray(found, np.float64), np.asarray(x, np.float64))


def test_only_cpus_have_it():
    def lowered(platform):
        return jax.jit(seam).trace(jnp.ones(3)).lower(lowering_platforms=(platform,)).as_text()

    assert "reduce_precision" in lowered("cpu")
    assert "reduce_precision" not in lowered("tpu")


def test_it_holds_to_the_end_of_the_compiler():
    """Else the compiler would have found out that it does nothing."""
    assert "reduce-precision" in jax.jit(lambda x: seam(x * x + 1)).lower(jnp.ones(999)).compile().as_text()


def test_gelu_equals_the_text_in_values_and_slopes():
    with jax.enable_x64(True):
        x = jnp.linspace(-8, 8, 401)

        def expected(x):
            return x * jax.scipy.stats.norm.cdf(x)

        for f, g in ((gelu, expected), (jax.grad(gelu), jax.grad(expected))):
            np.testing.assert_allclose(jax.vmap(f)(x), jax.vmap(g)(x), rtol=0, atol=1e-14)
        assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    x = jnp.linspace(-8, 8, 401, dtype=jnp.bfloat16)  # rounded once: the tail is not lost in 1 + erf
    exact = np.asarray(gelu(x.astype(jnp.float32)))
    np.testing.assert_allclose(np.asarray(gelu(x), np.float32), exact, rtol=2**-8, atol=1e-6)
