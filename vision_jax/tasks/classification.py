"""Image classification: one class an image, with soft targets, label smoothing, and distillation from a teacher."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vision_jax import registry
from vision_jax.errors import InputError, unknown
from vision_jax.functional import apply, split
from vision_jax.tasks import losses

LOSSES = {"softmax": losses.softmax_cross_entropy, "sigmoid": losses.sigmoid_cross_entropy}
CONFUSION_MOST = 1000  # classes for which a confusion matrix is kept


@functools.cache
def _static(name, num_classes):
    return split(registry.create_model(name, abstract=True, num_classes=num_classes))[0]


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task.

    Attributes:
      class_names: names of the classes; their number is the model's `num_classes`.
      loss: "softmax" (cross-entropy) or "sigmoid" (binary cross-entropy a class, as DeiT-III trains).
      label_smoothing: probability spread over all classes.
      teacher: a model's name to distil from, with `teacher_weights`, or "" for none.
      distillation: "hard" or "soft" (DeiT, arXiv:2012.12877, equations 2 and 3), weighted by `distillation_weight`
        against the labels' loss; soft targets at `temperature`.
    """

    class_names: tuple
    loss: str = "softmax"
    label_smoothing: float = 0.0
    teacher: str = ""
    teacher_weights: str = ""
    distillation: str = "hard"
    distillation_weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise unknown("task.loss", self.loss, LOSSES)
        if self.distillation not in losses.DISTILLATION:
            raise unknown("task.distillation", self.distillation, losses.DISTILLATION)
        for field in ("label_smoothing", "distillation_weight"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"task.{field}={getattr(self, field)} is not between 0 and 1")
        if self.temperature <= 0:
            raise InputError(f"task.temperature={self.temperature} is not above 0")
        if self.teacher:
            registry.model_info(self.teacher)  # raises where there is none
        if self.teacher and not self.teacher_weights:
            given = f"task.teacher={self.teacher!r}"
            raise InputError(f"{given} needs task.teacher_weights, a safetensors file or a run's workdir")

    def model_fields(self):
        """The config fields that the task decides of the model."""
        return {"num_classes": len(self.class_names)}

    def teacher_static(self):
        """The teacher without its arrays, or None."""
        if not self.teacher:
            return None
        return _static(self.teacher, len(self.class_names))

    def frozen_shapes(self):
        """Shapes of what the loss needs beside the model and is not trained: the teacher's variables."""
        return {"teacher": self.teacher_static().shapes} if self.teacher else {}

    def train_loss(self, static, variables, frozen, batch, key):
        """The loss of a batch in train mode.

        Args:
          static, variables: the model.
          frozen: arrays in the shapes of `frozen_shapes()`.
          batch: "image" [B, H, W, C] normalised, "label" [B]; after mixing "label_mixed" [B] and "mix_weight" [B].
          key: of dropout and drop-path.

        Returns:
          (loss, (state, metrics)): a scalar, the updated collections, scalars for the log.
        """
        logits, state = apply(static, variables, batch["image"], train=True, key=key)
        logits, distilled = logits if isinstance(logits, tuple) else (logits, logits)
        loss = LOSSES[self.loss](logits, self._targets(batch)).mean()
        if self.teacher:
            taught, _ = apply(self.teacher_static(), frozen["teacher"], batch["image"])
            taught = losses.distillation(distilled, taught, self.distillation, self.temperature).mean()
            loss = (1 - self.distillation_weight) * loss + self.distillation_weight * taught
        return loss, (state, {"loss": loss, "accuracy": (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32)})

    def _targets(self, batch):
        label, k, smoothing = batch["label"], len(self.class_names), self.label_smoothing
        if "label_mixed" in batch:
            return losses.mixed_targets(label, batch["label_mixed"], batch["mix_weight"], k, smoothing)
        return losses.smooth(label, k, smoothing)

    def evaluate(self, static, variables, batch):
        """Sums over the examples that `batch["mask"]` marks as real: to be added up over batches."""
        logits, _ = apply(static, variables, batch["image"])
        mask, label, k = batch["mask"].astype(jnp.float32), batch["label"], len(self.class_names)
        own = jnp.take_along_axis(logits, label[:, None], 1)
        earlier = jnp.arange(k) < label[:, None]  # equal logits rank as argmax ranks them: equal ones are no success
        rank = ((logits > own) | ((logits == own) & earlier)).sum(-1)
        predicted = logits.argmax(-1)
        loss = LOSSES[self.loss](logits, jax.nn.one_hot(label, k))
        sums = {
            "count": mask.sum(),
            "loss": jnp.where(batch["mask"], loss, 0).sum(),
            "top1": (mask * (predicted == label)).sum(),
            "top5": (mask * (rank < 5)).sum(),
        }
        if k <= CONFUSION_MOST:
            sums["confusion"] = jnp.zeros((k, k), jnp.float32).at[label, predicted].add(mask)
        return sums

    @property
    def metric_names(self):
        """The names of what `metrics` gives."""
        return ("loss", "accuracy") + ("accuracy_top5",) * (len(self.class_names) > 5)

    def metrics(self, sums):
        """The sums of a whole split -> scalars: loss, accuracy (top-1), and top-5 where it says something."""
        summed = {"loss": "loss", "accuracy": "top1", "accuracy_top5": "top5"}
        return {name: float(sums[summed[name]] / sums["count"]) for name in self.metric_names}

    def predict(self, static, variables, images):
        """Images [B, H, W, C], normalised -> probabilities [B, num_classes]."""
        logits, _ = apply(static, variables, images)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jax.nn.softmax(logits) if self.loss == "softmax" else jax.nn.sigmoid(logits)
