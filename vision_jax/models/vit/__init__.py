"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021, arXiv:2010.11929), and the models that are plain ViTs.

An image is cut into patches, each projected to a token; a learned position is added and a plain pre-norm transformer
runs over the tokens. Official repository: google-research/vision_transformer; compared here with timm's.

- DeiT (Touvron et al., 2021, arXiv:2012.12877): a second token and head learn from a teacher. DeiT III (Touvron et al.,
  2022, arXiv:2204.07118): layer scale, positions for the patches alone. Official: facebookresearch/deit.
- DINOv2 (Oquab et al., 2023, arXiv:2304.07193): layer scale; SwiGLU in the largest. Official: facebookresearch/dinov2.
- Registers (Darcet et al., 2024, arXiv:2309.16588): tokens that belong to no patch, dropped at the end.
- SigLIP (Zhai et al., 2023, arXiv:2303.15343; SigLIP 2: arXiv:2502.14786): no class token, a learned query attends to
  the patches. Official: google-research/big_vision.
- CLIP's image towers (Radford et al., 2021, arXiv:2103.00020; TinyCLIP: Wu et al., 2023, arXiv:2309.12314): a norm
  before the first block, QuickGELU in OpenAI's own. Official: openai/CLIP.
- BEiT-3's vision expert (Wang et al., 2022, arXiv:2208.10442): a norm more in each branch, before what is projected
  last. Official: microsoft/unilm, beit3.
- FlexiViT (Beyer et al., 2023, arXiv:2212.08013), trained with patches of all sizes; InternViT (Chen et al., 2023,
  arXiv:2312.14238), whose last tokens are not normalised; TIPSv2 (2026, arXiv:2604.12012); and one whose norms
  follow the branches, as Swin V2's.
- AIMv2 (Fini et al., 2024, arXiv:2411.14402): norms that only rescale, gated networks, no biases. Official:
  apple/ml-aim.
- ViTs of wider blocks and of differential attention, in `parallel.py`; C-RADIO's (Ranzinger et al., 2024,
  arXiv:2312.06709), in `radio.py`.
- EVA's large models (Fang et al., 2022, arXiv:2211.07636), which are plain ViTs; the others are in `models/eva`.
"""

from vision_jax.models.vit import aimv2, clip, parallel, radio, variants  # noqa: F401, registers them
from vision_jax.models.vit.model import VisionTransformer, ViTConfig, settle

__all__ = ["ViTConfig", "VisionTransformer", "settle"]
