"""What a user would otherwise pick. Nothing here is imported before it is asked for."""

import importlib
import os
from typing import NamedTuple

import jax

from vision_jax.errors import InputError
from vision_jax.tools.bench.ours import LEARNING_RATE, WEIGHT_DECAY


class Peer(NamedTuple):
    """A peer's programs: functions like `Ours.forward` and `Ours.train`."""

    forward: object
    train: object


class Timm:
    """timm's models in PyTorch: eager, or compiled by torch.

    Where torchvision does not load, the variable VISION_JAX_PARITY_PREIMPORT names a module to import before timm.

    Args:
      threads: torch's number of threads.

    Raises:
      InputError: torch or timm is not installed; the device is one that torch does not have.
    """

    def __init__(self, threads):
        platform = jax.default_backend()
        if platform not in ("cpu", "gpu"):
            raise InputError(f"--against timm: torch does not run on {platform}; JAX_PLATFORMS=cpu compares CPUs")
        try:
            if first := os.environ.get("VISION_JAX_PARITY_PREIMPORT"):
                importlib.import_module(first)
            self.torch, self.timm = importlib.import_module("torch"), importlib.import_module("timm")
        except ImportError as e:
            raise InputError(f'--against timm: {e}; pip install -e ".[parity]"') from e
        self.torch.set_num_threads(threads)
        self.device = "cpu" if platform == "cpu" else "cuda"

    def model(self, name, img_size, dtype, compile=False):
        """A `Peer`, or None where timm has no such model.

        Args:
          name: the model's, with or without a tag.
          img_size: side or sides of the images where they are not the model's own, else None.
          dtype: "float32" or "bfloat16"; the latter by autocast, parameters stay float32.
          compile: by torch.compile.
        """
        name = name.partition(".")[0]
        if not self.timm.is_model(name):
            return None
        try:
            model = self.timm.create_model(name, **({"img_size": img_size} if img_size else {}))
        except TypeError:  # convolutional models take images of any size, and no argument for it
            model = self.timm.create_model(name)
        model = model.to(self.device)
        run = self.torch.compile(model) if compile else model
        autocast = self.torch.autocast(self.device, self.torch.bfloat16, enabled=dtype == "bfloat16")
        return Peer(
            lambda images: self._forward(model, run, autocast, images),
            lambda images, labels: self._train(model, run, autocast, images, labels),
        )

    def _forward(self, model, run, autocast, images):
        images = self._images(images)

        def call():
            model.eval()
            with self.torch.inference_mode(), autocast:
                run(images)
            self._wait()

        return call

    def _train(self, model, run, autocast, images, labels):
        torch, images = self.torch, self._images(images)
        labels = torch.from_numpy(labels).long().to(self.device)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)

        def call():
            model.train()
            with autocast:
                logits = run(images)
                logits = logits[0] if isinstance(logits, (tuple, list)) else logits
                loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self._wait()

        return call

    def _images(self, images):
        return self.torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self.device)

    def _wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()


PEERS = {"timm": Timm}
