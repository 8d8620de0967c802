"""EVA: Exploring the Limits of Masked Visual Representation Learning at Scale (Fang et al., 2022, arXiv:2211.07636).

A plain ViT of a billion parameters, trained to tell what CLIP sees where patches are hidden; as in BEiT keys have no
bias. Official repository: baaivision/EVA; compared here with timm's, as is what it grew into:

- EVA-02 (Fang et al., 2023, arXiv:2303.11331): rotary positions beside the learned ones, a gated network (SwiGLU); from
  the base size on, a norm of what is projected last in each branch.
- ViTs with rotary positions, of timm's own training and of RoPE-ViT (Heo et al., 2024, arXiv:2403.13298), some with
  learned frequencies ("mixed"). Official: naver-ai/rope-vit.
- DINOv3 (Simeoni et al., 2025, arXiv:2508.10104): rotary positions on a grid from -1 to 1, none learned. Training's
  random scaling of that grid is off, as in timm's models; rotary_rescale=2 is the official code's. Official:
  facebookresearch/dinov3. LingBot-Vision (Fu et al., 2026, arXiv:2607.05247) and EUPE are the same networks with other
  weights.
- Perception Encoder (Bolya et al., 2025, arXiv:2504.13181): rotary positions that count columns first, a norm before
  the first block, pooling by attention. Official: facebookresearch/perception_models.
- Sapiens2 (2026, arXiv:2604.21681): see `sapiens2.py`.
"""

from vision_jax.models.eva import sapiens2, variants  # noqa: F401, registers them
from vision_jax.models.eva.model import Eva, EvaConfig

__all__ = ["Eva", "EvaConfig"]
