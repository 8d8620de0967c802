"""The list of ops in a config -> what runs on the host and what runs on the device.

An op is a call with literal arguments, written as a string: "flip", "resize(256)", "mix(mixup=0.8, cutmix=1.0)". Host
ops come first and work on one image; device ops follow and work on the batch, inside the jitted step.
"""

import ast
import dataclasses
import inspect

import jax

from vision_jax.data import augment, device_ops, host_ops
from vision_jax.data.decode import from_array, to_array
from vision_jax.errors import InputError, unknown

HOST_OPS = {
    "decode": host_ops.Decode,
    "resize": host_ops.Resize,
    "center_crop": host_ops.CenterCrop,
    "pad": host_ops.Pad,
    "random_crop": host_ops.RandomCrop,
    "random_resized_crop": host_ops.RandomResizedCrop,
    "flip": host_ops.Flip,
    "color_jitter": host_ops.ColorJitter,
    "rand_augment": augment.RandAugment,
    "three_augment": augment.ThreeAugment,
}
DEVICE_OPS = {
    "normalize": device_ops.Normalize,
    "random_erasing": device_ops.RandomErasing,
    "mix": device_ops.Mix,
}


def split_ops(ops):
    """List of op strings -> `(host_ops, device_ops)`.

    Args:
      ops: a tuple or list of strings, host ops before device ops.

    Returns:
      host_ops, `fn(example, rng) -> example`: "image" bytes or uint8 [H, W, C] in, uint8 [H, W, C] out; picklable.
      device_ops, `fn(key, batch) -> batch`: traceable; the key may be None where no op is random.

    Raises:
      InputError: an unknown op or argument, wrong syntax, a value out of range, or ops in an order that cannot run.
    """
    if isinstance(ops, str) or not all(isinstance(text, str) for text in ops):
        raise InputError(f'ops is a tuple of strings such as ("decode", "resize(224)", "normalize"): given {ops!r}')
    host, device = [], []
    for text in ops:
        name, op = parse_op(text)
        if name in DEVICE_OPS:
            if name != "normalize" and not any(isinstance(o, device_ops.Normalize) for o in device):
                raise InputError(f'{text!r} works on floating-point images: put "normalize" before it')
            device.append(op)
        elif device:
            raise InputError(f"{text!r} runs on the host and cannot follow the device op {device[-1]}: move it up")
        elif name == "decode" and host:
            raise InputError(f"{text!r} must be the first op: it comes after {host[-1]}")
        else:
            host.append(op)
    return HostOps(tuple(host)), DeviceOps(tuple(device))


def parse_op(text):
    """One op string -> (name, op): "resize(256)" -> ("resize", Resize(size=256))."""
    name, args, kwargs = _parse_call(text)
    table = HOST_OPS | DEVICE_OPS
    if name not in table:
        raise unknown("op", name, table)
    op = table[name]
    signature = inspect.signature(op)
    for argument in kwargs:
        if argument not in signature.parameters:
            raise unknown(f"argument of {name}", argument, signature.parameters)
    try:
        return name, op(*args, **kwargs)
    except TypeError as error:  # too few or too many arguments, or a value of the wrong type
        raise InputError(f"{text!r}: {error}; it is used as {name}{_without_types(signature)}") from None


def _without_types(signature):
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)


def _parse_call(text):
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise InputError(f'op {text!r} is not a call such as "resize(256)": {error.msg}') from None
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise InputError(f'op {text!r} is not a name or a call such as "resize(256)"')
    try:
        args = [ast.literal_eval(value) for value in node.args]
        kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    except ValueError:
        raise InputError(f"op {text!r}: arguments are literals: numbers, strings, tuples, True, False, None") from None
    return node.func.id, args, kwargs


@dataclasses.dataclass(frozen=True)
class HostOps:
    """The host ops in order, as one function of an example and a NumPy generator."""

    ops: tuple

    def __call__(self, example, rng):
        image = example["image"]
        if not (self.ops and isinstance(self.ops[0], host_ops.Decode)):
            if isinstance(image, bytes):
                raise InputError('the images are encoded: ops must start with "decode"')
            image = from_array(image)
        for op in self.ops:
            image = op(image, rng)
        return {**example, "image": to_array(image)}


@dataclasses.dataclass(frozen=True)
class DeviceOps:
    """The device ops in order, as one traceable function of a key and a batch; each op has a key of its own."""

    ops: tuple

    def __call__(self, key, batch):
        for i, op in enumerate(self.ops):
            if op.random and key is None:
                raise InputError(f"{op} is random: it needs a key")
            batch = op(jax.random.fold_in(key, i) if op.random else None, batch)
        return batch
