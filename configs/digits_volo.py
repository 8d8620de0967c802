"""A small VOLO on scikit-learn's handwritten digits, trained by token labelling; the argument is its teacher's workdir.

    python -m vision_jax.main --config configs/digits_resnet.py --workdir runs/digits_resnet
    python -m vision_jax.main --config configs/digits_volo.py:runs/digits_resnet --workdir runs/digits_volo

Two busy CPU cores: nine minutes, 97 % of the 360 test digits right; its teacher gets 98 %.

Each patch of 16x16 pixels learns what the teacher sees there; without a teacher, the image's label. Token labelling
(Jiang et al., 2021, arXiv:2104.10858) is how VOLO is trained on ImageNet.
"""

from vision_jax.train.config import default_config


def get_config(arg=""):
    c = default_config()
    c.total = "60 epochs"

    c.model.name = "volo_d1_224"  # its shape is given below
    c.model.stem_dim = 16
    c.model.embed_dims = (32, 64)
    c.model.num_heads = (2, 4)
    c.model.depths = (1, 2)
    c.model.class_depth = 1
    c.model.mix_token = True
    c.model.token_labels = True

    c.task.token_labelling = True
    c.task.teacher_weights = arg
    c.task.label_smoothing = 0.1

    c.data.source = "digits"
    c.data.ops = ("random_crop(8, padding=1)", "resize(64)", "normalize(mean=(0.3,), std=(0.38,))")
    c.data.batch_size = 64
    c.eval.split = "test"
    c.eval.ops = ("decode(channels=1)", "resize((64, 64))", "normalize(mean=(0.3,), std=(0.38,))")
    c.eval.batch_size = 120
    c.eval.every = "5 epochs"

    c.optim.name = "adamw"
    c.optim.lr = 2e-3
    c.optim.weight_decay = 0.05
    c.optim.schedule.warmup = "2 epochs"
    c.ema = 0.99

    c.checkpoint.every = "5 epochs"
    return c
