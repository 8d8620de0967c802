"""Classification losses and their targets: pure functions, one value an example, in float32 or wider.

A task averages what they return, with a mask where a batch is padded. The reference for smoothing, mixing and binary
cross-entropy is timm (github.com/huggingface/pytorch-image-models); for distillation, DeiT (arXiv:2012.12877).
"""

import jax
import jax.numpy as jnp

from vision_jax import errors

DISTILLATION = ("soft", "hard")


def softmax_cross_entropy(logits, targets):
    """Cross-entropy with soft targets.

    Args:
      logits: [B, K].
      targets: [B, K], probabilities.

    Returns:
      [B].
    """
    return -jnp.sum(_wide(targets) * jax.nn.log_softmax(_wide(logits)), axis=-1)


def sigmoid_cross_entropy(logits, targets, *, target_threshold=None, sum_classes=False):
    """Binary cross-entropy of every class against the rest (timm's `BinaryCrossEntropy`, with its defaults).

    Args:
      logits: [B, K].
      targets: [B, K], in 0..1; smoothed or mixed beforehand.
      target_threshold: make the targets 1 where they are above it and 0 elsewhere. DeiT III (arXiv:2204.07118) says 0.
      sum_classes: sum over the classes. By default the mean, 1/K of it.

    Returns:
      [B].
    """
    logits, targets = _wide(logits), _wide(targets)
    if target_threshold is not None:
        targets = (targets > target_threshold).astype(targets.dtype)
    loss = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
    return jnp.sum(loss, axis=-1) if sum_classes else jnp.mean(loss, axis=-1)


def smooth(labels, num_classes, smoothing=0.0):
    """Labels -> targets: smoothing / K everywhere, and 1 - smoothing + smoothing / K at the label (arXiv:1512.00567).

    Args:
      labels: [B], integers.
      num_classes: K.
      smoothing: in 0..1.

    Returns:
      [B, K].
    """
    off = smoothing / num_classes
    # astype: two Python numbers are weakly typed and would take a mixing weight's bfloat16.
    return jnp.where(jax.nn.one_hot(labels, num_classes, dtype=bool), 1 - smoothing + off, off).astype(float)


def smooth_targets(targets, smoothing):
    """Smoothing of targets that are probabilities already, [..., K] (arXiv:1512.00567)."""
    return (1 - smoothing) * targets + smoothing / targets.shape[-1]


def corrected_targets(taught, labelled):
    """A teacher's targets and the labels', [B, K] each, as one: their mean where both have the same likeliest class.

    Elsewhere nine parts of ten are the teacher's (VOLO's fine-tuning, github.com/sail-sg/volo).
    """
    agree = taught.argmax(-1) == labelled.argmax(-1)
    share = jnp.where(agree, 0.5, 0.9)[:, None].astype(taught.dtype)
    return share * taught + (1 - share) * labelled


def mixed_targets(label, label_mixed, weight, num_classes, smoothing=0.0):
    """Targets of mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) images (timm's `mixup_target`).

    Args:
      label: [B], integers: of the image itself.
      label_mixed: [B], integers: of the image mixed into it.
      weight: [B] or a scalar: the first image's share.
      num_classes: K.
      smoothing: label smoothing of both.

    Returns:
      [B, K].
    """
    weight = jnp.asarray(weight)[..., None]
    first, second = (smooth(labels, num_classes, smoothing) for labels in (label, label_mixed))
    return weight * first + (1 - weight) * second


def distillation(student_logits, teacher_logits, kind="soft", temperature=1.0):
    """The teacher's term of DeiT's objectives (arXiv:2012.12877). No gradient reaches the teacher.

    Soft, from equation 2: temperature**2 * KL(teacher || student) of the softened probabilities, summed over classes
    as in the paper (the released code also divides by their number, so its weight of 1 is 1/K here). Hard, from
    equation 3: the cross-entropy with the teacher's decision; it has no temperature.

    Args:
      student_logits: [B, K].
      teacher_logits: [B, K].
      kind: "soft" or "hard".
      temperature: of the soft kind.

    Returns:
      [B].

    Raises:
      InputError: an unknown kind.
    """
    if kind not in DISTILLATION:
        raise errors.unknown("distillation", kind, DISTILLATION)
    student, teacher = _wide(student_logits), jax.lax.stop_gradient(_wide(teacher_logits))
    if kind == "hard":
        return softmax_cross_entropy(student, smooth(jnp.argmax(teacher, axis=-1), teacher.shape[-1]))
    log_student, log_teacher = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    return temperature**2 * jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)


def dense_targets(scores, grid, most=5):
    """An annotator's scores -> targets of a model's tokens (token labelling: Jiang et al., 2021, arXiv:2104.10858).

    As in the released code: of each position the highest scores are kept and the others set to 0, maps are
    interpolated, and softmax follows. (There, maps are stored and RoIAlign cuts the image's crop from them; here the
    annotator has seen the crop itself.) No gradient reaches the annotator.

    Args:
      scores: [B, h, w, K], logits.
      grid: (H, W), of the tokens.
      most: how many scores of a position are kept; 0 for all.

    Returns:
      Of the image [B, K], from the scores' mean over it; of the tokens [B, H, W, K].
    """
    scores = jax.lax.stop_gradient(_wide(scores))
    if 0 < most < scores.shape[-1]:
        values, classes = jax.lax.top_k(scores, most)
        scores = (jax.nn.one_hot(classes, scores.shape[-1], dtype=scores.dtype) * values[..., None]).sum(-2)
    tokens = jax.image.resize(scores, (scores.shape[0], *grid, scores.shape[-1]), "linear")
    return jax.nn.softmax(scores.mean((1, 2))), jax.nn.softmax(tokens)


def token_labelling(output, image_targets, token_targets, token_weight=0.5):
    """The loss of a model that gives `TokenLogits` (arXiv:2104.10858, equation 4).

    The cross-entropy of the image plus `token_weight` times the mean of the tokens'. Where the model mixed tokens of
    each image with those of the one as far from the batch's other end, so are the images' targets, by their shares; the
    tokens' logits lie where their image is.

    Args:
      output: a `TokenLogits`.
      image_targets: [B, K], probabilities.
      token_targets: [B, h, w, K], probabilities.
      token_weight: of the tokens' term.

    Returns:
      [B].
    """
    kept = _wide(output.kept)
    image_targets = kept * image_targets + (1 - kept) * image_targets[::-1]
    tokens = softmax_cross_entropy(output.tokens, token_targets).mean((1, 2))
    return softmax_cross_entropy(output.logits, image_targets) + token_weight * tokens


def _wide(x):
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
