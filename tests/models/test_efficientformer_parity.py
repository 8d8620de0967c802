"""EfficientFormers' weight files next to timm. `pytest -m parity`."""

import pytest

import vision_jax as vj

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", ["efficientformer_l1", "efficientformer_l3", "efficientformerv2_s0"])
def test_timm_reads_what_is_written(name, reference, tmp_path):
    timm, load = reference("timm"), reference("safetensors.torch").load_file
    vj.save_weights(vj.create_model(name), tmp_path / "model.safetensors", names="timm")
    theirs = timm.create_model(name)
    given = theirs.state_dict()
    written = load(tmp_path / "model.safetensors")
    theirs.load_state_dict(written, strict=True)
    for key, leaf in given.items():
        if key.endswith("attention_bias_idxs"):
            assert (written[key] == leaf).all()
