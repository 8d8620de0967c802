"""Models for deployment: equal values with the norms merged, built abstract, saved and read again."""

import numpy as np
import pytest
from flax import nnx

import golden
import vision_jax as vj
from golden_cases import CASES, filled

pytestmark = pytest.mark.heavy

LEFT = {  # of each family the norms that no layer takes over
    "shvit": set(),
    "efficientformer": set(),
    "efficientformer_v2": {"norm_pre"},
    "nextvit": {"norm_pre"},
    "levit": set(),
    "fastvit": {"stages.3.blocks.0.attn.norm"},
    "tiny_vit": set(),
    "repvit": set(),
    "repvit_legacy": set(),
}


@pytest.fixture(scope="module", params=LEFT)
def pair(request):
    """(key, trained form, deployed form, images)."""
    case, (arrays, record) = CASES[request.param], golden.load(request.param)
    model = filled(case, record, arrays)
    return request.param, model, model.reparameterize(), golden.images(case.size)


def test_values_are_equal(pair):
    key, model, deployed, images = pair
    expected = vj.jit(model)(images)
    assert abs(expected[0] - expected[1]).max() > 1e-2 * expected.std()
    np.testing.assert_allclose(vj.jit(deployed)(images), expected, rtol=0, atol=1e-5 * abs(expected).max())
    norms = {".".join(map(str, path[:-1])) for path, _ in nnx.to_flat_state(nnx.state(deployed, nnx.BatchStat))}
    assert norms == LEFT[key]


def test_weights_of_a_deployed_model(pair, tmp_path):
    key, _, deployed, _ = pair
    vj.save_weights(deployed, tmp_path / "deployed.safetensors", names="ours")
    empty = vj.create_model(CASES[key].ours, abstract=True, **CASES[key].fields).reparameterize()
    loaded = vj.state_dict(vj.load_weights(empty, tmp_path / "deployed.safetensors"), "ours")
    expected = vj.state_dict(deployed, "ours")
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], expected[name]) for name in expected)
