"""RAVLT against the authors' classfication/RALA.py: both mixers, maps of odd sizes, scales of all stages.

The reference is a module `official.ravlt` around that file of qhfan/RALA at commit a86314f6: `create_model` hands its
arguments to the class, and the table of rotary frequencies is made anew in the model's dtype instead of rounded.
"""

from golden import Case

SIZE = (44, 60)  # maps of 11 x 15, 6 x 8, 3 x 4 and 2 x 2
FIELDS = dict(depths=(1, 1, 2, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 3, 2), num_classes=7, projection=24)

CASES = {
    "ravlt": Case(
        "ravlt_tiny", dict(FIELDS, img_size=SIZE, drop_path_rate=0.0), "official.ravlt:RAVLT_T",
        dict(FIELDS, layer_init_values=(1, 1, 1, 1)), size=SIZE, init=dict(depths=(1, 1, 1, 1)),
    )
}  # fmt: skip
