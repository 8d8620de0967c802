"""ViR against the authors' models/vir.py: retention, which that has chunk by chunk, and its parallel form with softmax.

The reference is a module `official.vir` around that file of anom63931/ViR at commit d91fd8be. `create_model` takes the
mode of the forward pass too, and the head after the chunkwise one, which the file forgets; the decays are made anew in
the model's dtype, and the number of tokens counts the patches of the image given.
"""

from golden import Case

SIZE = (64, 96)  # 4 x 6 patches and the class token
FIELDS = dict(img_size=SIZE, embed_dim=48, depth=3, num_heads=3, num_classes=7)


def case(softmax):
    mode = dict(mode="parallel") if softmax else dict(mode="chunkwise", chunk_size=10)
    return Case(
        "vir_small_patch16_224", dict(FIELDS, softmax=softmax), "official.vir:vir_small_patch16_224",
        dict(FIELDS, **mode), size=SIZE, init=dict(depth=1),
    )  # fmt: skip


CASES = {"vir": case(False), "vir_softmax": case(True)}
