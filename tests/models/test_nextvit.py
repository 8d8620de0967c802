"""What goldens of Next-ViT do not see."""

import jax
import pytest

import tiny
import vision_jax as vj
from vision_jax.errors import InputError
from vision_jax.functional import Train
from vision_jax.models import nextvit


def test_a_transformer_shares_out_its_drop_path_rate(monkeypatch):
    shares = []
    config = nextvit.NextViTConfig(head_dim=8)
    monkeypatch.setattr(nextvit, "drop_path", lambda x, train, share=1.0: shares.append(share) or x)

    def call(x):
        return nextvit.TransformerBlock(config, 32, 128, 1, 1)(x, Train(jax.random.key(0), 0.4))

    jax.eval_shape(call, tiny.normal(1, 2, 2, 32))
    assert shares == [0.75, 0.25, 1.0]


def test_wrong_input_is_told():
    with pytest.raises(InputError, match="a map of 1 x 2 is below the 4 tokens of one average"):
        nextvit.RunAttention(8, 8, 4, attn_drop=0.0, proj_drop=0.0, dtype="float32")(tiny.normal(1, 1, 2, 8))
    with pytest.raises(InputError, match=r"the parts \[0, 0, 192, 64, 384, 128, 768, 256\] of mixed_dims must be mul"):
        vj.create_model("nextvit_small", abstract=True, head_dim=48)
