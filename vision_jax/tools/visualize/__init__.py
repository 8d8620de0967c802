"""What a model sees, as pictures: attention, rollout, position biases, features, receptive fields, Grad-CAM.

`picture(model, kind, photos)` draws, the other functions give the arrays behind it. As a command,
`python -m vision_jax.tools.visualize` writes the pictures of a model and of image files.
"""

from vision_jax.tools.visualize.attention import AttentionMap, attention_maps
from vision_jax.tools.visualize.features import feature_colours
from vision_jax.tools.visualize.gradcam import grad_cam
from vision_jax.tools.visualize.kinds import KINDS, picture, possible, prepare
from vision_jax.tools.visualize.receptive_field import effective_side, receptive_field
from vision_jax.tools.visualize.relative_bias import BiasMap, relative_biases
from vision_jax.tools.visualize.rollout import rollout

__all__ = [
    "KINDS",
    "AttentionMap",
    "BiasMap",
    "attention_maps",
    "effective_side",
    "feature_colours",
    "grad_cam",
    "picture",
    "possible",
    "prepare",
    "receptive_field",
    "relative_biases",
    "rollout",
]
