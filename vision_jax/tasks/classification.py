"""Image classification: one class an image, with soft targets, label smoothing, and what a teacher knows besides."""

import dataclasses

import jax
import jax.numpy as jnp

from vision_jax.errors import InputError, unknown
from vision_jax.functional import apply
from vision_jax.tasks import losses
from vision_jax.tasks.teacher import make_teacher

LOSSES = {"softmax": losses.softmax_cross_entropy, "sigmoid": losses.sigmoid_cross_entropy}
IMAGE_TARGETS = ("labels", "teacher", "both")
CONFUSION_MOST = 1000  # classes for which a confusion matrix is kept


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task.

    Attributes:
      class_names: names of the classes; their number is the model's `num_classes`.
      loss: "softmax" (cross-entropy) or "sigmoid" (binary cross-entropy a class, as DeiT-III trains).
      label_smoothing: probability spread over all classes.
      teacher_weights: of a teacher, a run's workdir, which tells the model too, or what `load_weights` takes; "" for
        none. The teacher sees the student's images at its own size, normalised as its run normalised them, or as its
        published weights expect.
      teacher, teacher_fields: its registered name, and fields of its config; needed where it is no run's, and in the
        place of the run's where both tell.
      distillation: "hard" or "soft" (DeiT, arXiv:2012.12877, equations 2 and 3), weighted by `distillation_weight`
        against the labels' loss; soft targets at `temperature`. A model with a head of its own for the teacher's
        answers trains the mean of both heads where there is none, as timm's does.
      token_labelling: a label for each patch, for models that have `token_labels` (see `losses.token_labelling`). They
        are the teacher's, which then distils nothing else, or without one the image's.
      token_weight: of the patches' loss; token_scores: how many of the teacher's scores a patch keeps, 0 for all.
      image_targets: of the image with token labels: "labels"; "teacher", its scores over the whole image, as in the
        released code; or "both", one half each where they agree, else nine parts of ten the teacher's, as VOLO is
        fine-tuned (`--ground-truth`).
    """

    class_names: tuple
    loss: str = "softmax"
    label_smoothing: float = 0.0
    teacher: str = ""
    teacher_fields: dict = dataclasses.field(default_factory=dict)
    teacher_weights: str = ""
    distillation: str = "hard"
    distillation_weight: float = 0.5
    temperature: float = 1.0
    token_labelling: bool = False
    token_weight: float = 0.5
    token_scores: int = 5
    image_targets: str = "labels"

    def __post_init__(self):
        for field, allowed in (
            ("loss", LOSSES),
            ("distillation", losses.DISTILLATION),
            ("image_targets", IMAGE_TARGETS),
        ):
            if getattr(self, field) not in allowed:
                raise unknown(f"task.{field}", getattr(self, field), allowed)
        for field in ("label_smoothing", "distillation_weight"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(f"task.{field}={getattr(self, field)} is not between 0 and 1")
        if self.temperature <= 0:
            raise InputError(f"task.temperature={self.temperature} is not above 0")
        for field in ("token_weight", "token_scores"):
            if getattr(self, field) < 0:
                raise InputError(f"task.{field}={getattr(self, field)} is negative")
        self._check_teacher()
        self._check_token_labelling()

    def _check_teacher(self):
        weights = f"task.teacher_weights={self.teacher_weights!r}"
        if self.teacher_weights and not self.teacher:
            raise InputError(f"{weights} is no run's workdir: name the model in task.teacher")
        if self.teacher and not self.teacher_weights:
            given = f"task.teacher={self.teacher!r}"
            raise InputError(f"{given} needs task.teacher_weights, a safetensors file or a run's workdir")
        told = self.teacher_fields.get("num_classes", len(self.class_names))
        if told != len(self.class_names):
            raise InputError(f"the teacher of {weights} has {told} classes, the data have {len(self.class_names)}")
        if self.teacher:
            self.make_teacher()  # raises where it cannot be

    def _check_token_labelling(self):
        if self.token_labelling and self.loss != "softmax":
            raise InputError(f"task.token_labelling is for task.loss='softmax': given {self.loss!r}")
        if self.image_targets != "labels" and not (self.token_labelling and self.teacher):
            given = f"task.image_targets={self.image_targets!r}"
            raise InputError(f"{given} needs task.token_labelling=True and a teacher, task.teacher_weights")

    def model_fields(self):
        """The config fields that the task decides of the model; one that is False a model need not have."""
        return {"num_classes": len(self.class_names), "token_labels": self.token_labelling}

    def make_teacher(self):
        """The teacher without its arrays, or None."""
        if not self.teacher:
            return None
        fields = {**self.teacher_fields, "num_classes": len(self.class_names)}
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        return make_teacher(self.teacher, tuple(sorted(fields.items())))

    def frozen_shapes(self):
        """Shapes of what the loss needs beside the model and is not trained: the teacher's arrays."""
        return {"teacher": self.make_teacher().shapes()} if self.teacher else {}

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
        output, state = apply(static, variables, batch["image"], train=True, key=key)
        loss_of = self._token_loss if self.token_labelling else self._image_loss
        loss, logits = loss_of(output, batch, frozen)
        return loss, (state, {"loss": loss, "accuracy": (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32)})

    def _image_loss(self, output, batch, frozen):
        logits, distilled = output if isinstance(output, tuple) else (output, output)
        if isinstance(output, tuple) and not self.teacher:
            logits = (logits + distilled) / 2  # what is evaluated
        loss = LOSSES[self.loss](logits, self._targets(batch)).mean()
        if self.teacher:
            taught = self.make_teacher().logits(frozen["teacher"], batch["image"])
            taught = losses.distillation(distilled, taught, self.distillation, self.temperature).mean()
            loss = (1 - self.distillation_weight) * loss + self.distillation_weight * taught
        return loss, logits

    def _token_loss(self, output, batch, frozen):
        image, grid = self._targets(batch), output.tokens.shape[1:3]
        tokens = image[:, None, None]
        if self.teacher:
            scores = self.make_teacher().dense_logits(frozen["teacher"], batch["image"])
            taught, tokens = (
                losses.smooth_targets(targets, self.label_smoothing)
                for targets in losses.dense_targets(scores, grid, self.token_scores)
            )
            if self.image_targets == "teacher":
                image = taught
            elif self.image_targets == "both":
                image = losses.corrected_targets(taught, image)
        loss = losses.token_labelling(output, image, tokens, self.token_weight).mean()
        return loss, output.logits

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
