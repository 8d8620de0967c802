"""Optimisers from a config: optax's, with weight decay, freezing and layer-wise rates told by the parameters' names.

A parameter stacked for a scan over blocks counts as its blocks do, so a run trains alike with and without the scan. The
state's copies of the parameters keep the parameters' tree, so sharding rules written for names find them too.
"""

import difflib
import inspect
import re

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vision_jax import errors
from vision_jax.names import STACKED, dotted, map_named

# Biases; what norms and layer scales multiply by (logit scales too); tokens, tables of positions, temperatures; the
# vectors of affine layers and of state spaces; networks for positions (Swin V2's, MaxViT's).
NO_DECAY = (
    r"(bias|scale|gamma)$",
    r"(_token|_pos|pos_embed|relative_position_bias_table|rpb|temperature|gating_param)(_\d+)?$",
    r"(^|\.)(alpha|beta|A_log|D|freqs)$",
    r"(^|\.)(cpb_mlp|rel_pos\.mlp)\.",
)
DEFAULTS = {
    "name": "adamw",
    "weight_decay": 0.0,
    "clip": None,
    "options": {},
    "no_decay": NO_DECAY,
    "freeze": (),
    "layer_decay": 1.0,
    "moments_dtype": None,
    "offload": False,
}


def make_optimizer(config, params, *, schedule, layer_of=None, num_layers=None):
    """The optimiser that a config describes.

    Weight decay is multiplied by the learning rate, and decoupled from the gradient (AdamW, as torch has it), except
    for "sgd", where it is L2: added to the gradient before the momentum, as in torch and timm. "lamb" adapts only what
    it decays, as its authors' code and timm's do. "muon" orthogonalises the matrices inside the blocks; embeddings,
    heads, convolutions and vectors go to AdamW under the same learning rate.

    Args:
      config: a mapping or `ConfigDict` with any of these fields.
        name: "adamw", "sgd", "lamb", "lion" or "muon".
        weight_decay: its strength.
        clip: the greatest global norm of the trained parameters' gradient; 0 or None for no clipping.
        options: what the optimiser itself takes: b1, b2, eps, momentum, nesterov, ...
        no_decay: regular expressions (`re.search`) over names; what matches is not decayed. None for `NO_DECAY`.
        freeze: regular expressions; what matches stays as it is, without decay and without moments. Only where it
          matches some blocks of a stacked parameter and not others are moments held for all.
        layer_decay: layer-wise decay of the learning rate: a factor of layer_decay ** (num_layers - 1 - group).
        moments_dtype: "bfloat16" or "float32", of the first moment or momentum; None for the parameters' own.
        offload: the state lies in the host's memory between steps (ZeRO-Offload: arXiv:2101.06840, but the device still
          computes): whoever places the state puts it there, `update` brings it to the device.
      params: the parameters, or their shapes: nested dicts.
      schedule: step -> learning rate, or a number.
      layer_of: name -> group, from 0 (the stem) to num_layers - 1 (the head); the model knows it. For `layer_decay`.
      num_layers: the number of groups.

    Returns:
      An `optax.GradientTransformation`, whose update needs the parameters.

    Raises:
      InputError: an unknown field, name or option; a value out of range; a `freeze` pattern that matches nothing.
    """
    config = _checked(config)
    build = _BUILDERS[config["name"]]
    frozen, undecayed = _matcher(config["freeze"]), _matcher(config["no_decay"])
    all_names = []
    map_named(lambda names, _: all_names.extend(names), params)
    _check_freeze(config["freeze"], all_names)
    factor = _layer_factor(config["layer_decay"], layer_of, num_layers, all_names)

    def decays(name):
        return not undecayed(name)

    optimizer = optax.chain(
        _scale_by_name(lambda name: 0.0 if frozen(name) else 1.0),  # for the norm: frozen blocks of a stack
        optax.clip_by_global_norm(config["clip"]) if config["clip"] else optax.identity(),
        build(_add_decay(config["weight_decay"], decays), decays, config["moments_dtype"], **config["options"]),
        _scale_by_name(lambda name: 0.0 if frozen(name) else factor(name)),
        optax.scale_by_learning_rate(schedule),
    )
    optimizer = optax.selective_transform(optimizer, freeze_mask=frozen_mask(config["freeze"], params))
    return _from_host(optimizer) if config["offload"] else optimizer


def frozen_mask(freeze, params):
    """Which parameters `freeze` keeps as they are, a tree of bools; of stacked blocks all or none."""
    frozen = _matcher((freeze,) if isinstance(freeze, str) else freeze)
    return map_named(lambda names, _: all(map(frozen, names)), params)


def _from_host(optimizer):
    def update(updates, state, params):
        return optimizer.update(updates, jax.device_put(state, jax.memory.Space.Device), params)

    return optax.GradientTransformation(optimizer.init, update)


# --- The optimisers. What they take by keyword are the config's `options`.


def _adamw(decay, decays, dtype, *, b1=0.9, b2=0.999, eps=1e-8, nesterov=False):
    return optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype, nesterov=nesterov), decay)


def _sgd(decay, decays, dtype, *, momentum=0.9, nesterov=False):
    return optax.chain(decay, optax.trace(momentum, nesterov, dtype) if momentum else optax.identity())


def _lamb(decay, decays, dtype, *, b1=0.9, b2=0.999, eps=1e-6):
    return optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype), decay, _scale_by_trust_ratio(decays))


def _lion(decay, decays, dtype, *, b1=0.9, b2=0.99):
    return optax.chain(optax.scale_by_lion(b1, b2, mu_dtype=dtype), decay)


def _muon(
    decay, decays, dtype, *, beta=0.95, ns_steps=5, nesterov=True, consistent_rms=0.2, b1=0.9, b2=0.999, eps=1e-8
):
    # Updates scaled to AdamW's root mean square (arXiv:2502.16982, equation 4) let both share one learning rate.
    # The rate of -1 undoes optax's change of sign, which comes with the schedule, after the decay.
    axes = {"muon_weight_dimension_numbers": lambda tree: jax.tree_util.tree_map_with_path(_matrix_axes, tree)}
    shared = {"ns_steps": ns_steps, "beta": beta, "eps": eps, "nesterov": nesterov, "consistent_rms": consistent_rms}
    muon = contrib.muon(-1.0, mu_dtype=dtype, **shared, **axes)

    def labels(tree):
        return jax.tree_util.tree_map_with_path(lambda *leaf: "muon" if _matrix_axes(*leaf) else "adamw", tree)

    # optax's own AdamW for the rest would take `nesterov` too, and be NAdamW.
    directions = optax.partition({"muon": muon, "adamw": optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype)}, labels)
    return optax.chain(directions, decay)


_BUILDERS = {"adamw": _adamw, "sgd": _sgd, "lamb": _lamb, "lion": _lion, "muon": _muon}


def _matrix_axes(path, leaf):
    """Which axes of a kernel are a matrix's input and output; the others count matrices. None where it is no matrix."""
    name = dotted(path)
    if not name.endswith(".kernel") or re.search(r"(^|\.)(head(_\w+)?|\w*embed\w*|classifier)\.", name):
        return None
    blocks = int(STACKED in name.split("."))
    shape = leaf.shape[blocks:]
    if len(shape) == 2:  # [C, D]
        axes = (0, 1)
    elif len(shape) == 4 and re.search(r"(qkv|kv)\.kernel$", name):  # [C, 3, heads, head_dim]: q, k and v apart
        axes = (0, 2, 3)
    elif len(shape) == 3 and shape[1] == 2:  # [C, 2, hidden]: gate and value apart
        axes = (0, 2)
    else:
        return None
    return contrib.MuonDimensionNumbers(blocks + axes[0], tuple(blocks + axis for axis in axes[1:]))


# --- Transformations that go by name.


def _per_name(fn, names, leaf):
    """`fn(name)`: one value where all of a leaf's names agree, else an array [blocks, 1, ...] that broadcasts."""
    values = [fn(name) for name in names]
    if len(set(values)) == 1:
        return values[0]
    return jnp.asarray(values, leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))


def _scale_by_name(fn):
    def scale(names, update):
        factor = _per_name(fn, names, update)
        return update if isinstance(factor, float) and factor == 1 else update * factor

    return optax.stateless(lambda updates, params: map_named(scale, updates))


def _add_decay(weight_decay, decays):
    def add(names, update, param):
        mask = _per_name(decays, names, update)
        return update if mask is False else update + weight_decay * mask * param

    return optax.stateless(lambda updates, params: map_named(add, updates, params) if weight_decay else updates)


def _scale_by_trust_ratio(decays):
    ratio = optax.scale_by_trust_ratio()

    def one(update, param):
        return ratio.update(update, optax.EmptyState(), param)[0]

    def scale(names, update, param):
        scaled = jax.vmap(one)(update, param) if len(names) > 1 else one(update, param)  # a ratio for each block
        return jnp.where(_per_name(decays, names, update) > 0, scaled, update)

    return optax.stateless(lambda updates, params: map_named(scale, updates, params))


# --- What the config says.


def _matcher(patterns):
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as e:
        raise errors.InputError(f"{e.pattern!r} is no regular expression: {e}") from e
    return lambda name: any(pattern.search(name) for pattern in compiled)


def _checked(config):
    """The config with its defaults filled in, or the error that says what is wrong with it."""
    config = dict(config)
    for field in config:
        if field not in DEFAULTS:
            raise errors.unknown("optimiser field", field, DEFAULTS)
    config = DEFAULTS | {field: value for field, value in config.items() if value is not None}
    if config["name"] not in _BUILDERS:
        raise errors.unknown("optimiser", config["name"], _BUILDERS)
    for field in ("no_decay", "freeze"):
        patterns = config[field]
        config[field] = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for field in ("weight_decay", "clip"):
        if (config[field] or 0) < 0:
            raise errors.InputError(f"{field}={config[field]} must not be negative")
    if not 0 < config["layer_decay"] <= 1:
        raise errors.InputError(f"layer_decay={config['layer_decay']} must lie in 0..1, without the 0")
    if config["moments_dtype"] not in (None, "float32", "bfloat16"):
        raise errors.unknown("moments_dtype", config["moments_dtype"], ("float32", "bfloat16"))
    if not hasattr(config["options"], "items"):
        raise errors.InputError(f"options={config['options']!r} must map names to values")
    taken = inspect.signature(_BUILDERS[config["name"]]).parameters.values()
    allowed = [parameter.name for parameter in taken if parameter.kind is parameter.KEYWORD_ONLY]
    config["options"] = dict(config["options"])
    for option in config["options"]:
        if option not in allowed:
            raise errors.unknown(f"option of {config['name']}", option, allowed)
    return config


def _check_freeze(patterns, names):
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            parts = sorted({".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count(".") + 1)})
            near = difflib.get_close_matches(re.sub(r"[^\w.]", "", pattern), parts, 3, cutoff=0.4)
            raise errors.InputError(f"freeze: {pattern!r} matches no parameter; the closest names: {', '.join(near)}")


def _layer_factor(layer_decay, layer_of, num_layers, names):
    if layer_decay == 1:
        return lambda name: 1.0
    if layer_of is None or num_layers is None:
        raise errors.InputError(f"layer_decay={layer_decay}: this model does not tell its layers; set it to 1")
    for name in names:
        if not 0 <= layer_of(name) < num_layers:
            raise errors.InputError(f"layer_of({name!r})={layer_of(name)} must lie in 0..{num_layers - 1}")
    return lambda name: float(layer_decay ** (num_layers - 1 - layer_of(name)))
