"""A directory with a folder for each class: root/train/<class>/*.jpg, root/val/<class>/*.jpg or root/<class>/*.jpg."""

import os
from pathlib import Path

import numpy as np

from vision_jax.errors import InputError, unknown

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
WHOLE = "all"  # the one split of a root without split folders
HELD_OUT = ("train", "val")  # and its splits when a part is held out


class Folder:
    """Encoded images, as stored; classes are the sorted names of the class folders, images lie at any depth in them.

    A split is a subfolder of `root`. Where `root` holds the class folders itself, its one split is "all", or with
    `holdout`, the share of each class that is held out, "train" and "val". Where there is a "train" split its classes
    number the labels of every other split too.
    """

    def __init__(self, split, root, holdout=0.0):
        root = Path(root).expanduser()
        if not 0 <= holdout <= 0.5:
            raise InputError(f"folder: holdout lies in [0, 0.5]: given {holdout!r}")
        if not root.is_dir():
            raise InputError(
                f"folder: root {str(root)!r} {'is not a directory' if root.exists() else 'does not exist'}"
            )
        splits = [folder.name for folder in _subfolders(root) if _subfolders(folder)]
        if splits and holdout:
            raise InputError(f"folder: holdout={holdout} is for a root without splits; {root} has {', '.join(splits)}")
        if split not in (splits or (HELD_OUT if holdout else [WHOLE])):
            if splits or holdout:
                raise unknown(f"split of {root}", split, splits or HELD_OUT)
            raise InputError(
                f"unknown split {split!r}: {root} has no split folders (train/<class>/..., val/<class>/...), only"
                f' classes at most, so its one split is "{WHOLE}"; holdout=0.1 makes it "train" and "val"'
            )
        self._root = root / split if splits else root
        found = [folder.name for folder in _subfolders(self._root)]
        if not found:
            raise InputError(f"folder: {str(self._root)!r} holds no class folders")
        train = [folder.name for folder in _subfolders(root / "train")] if "train" in splits else found
        if extra := sorted(set(found) - set(train)):
            raise InputError(f"folder: {self._root} has classes that {root / 'train'} has not: {_some(extra)}")
        self.class_names = tuple(train)
        files, labels, empty = [], [], []
        for name in found:
            images = _images(self._root, name)
            if holdout and images:
                images = [file for i, file in enumerate(images) if _held_out(i, holdout) == (split == "val")]
            files += images
            labels += [train.index(name)] * len(images)
            if not images:
                empty.append(name)
        if empty:
            raise InputError(
                f"folder: no images ({', '.join(EXTENSIONS)}) in these class folders of {self._root}: {_some(empty)}"
            )
        self._files = np.array(files)  # bytes in one block: a million paths as a list are slow to send to workers
        self._labels = np.array(labels, np.int32)

    def __len__(self):
        return len(self._files)

    def __getitem__(self, i):
        return {"image": Path(self.name(i)).read_bytes(), "label": int(self._labels[i])}

    def name(self, i):
        """The path of the file."""
        return os.path.join(self._root, os.fsdecode(self._files[i]))


def _held_out(i, share):
    """Whether the i-th image of a class is held out: evenly spread, the first one of a class always."""
    return int(np.ceil(i * share)) < int(np.ceil((i + 1) * share))


def _subfolders(folder):
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    return [folder / name for name in names]


def _images(root, name):
    """Sorted paths of the images below a class folder, relative to root, as bytes."""
    found = []
    for directory, _, files in os.walk(root / name, followlinks=True):
        relative = os.path.relpath(directory, root)
        for file in files:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                found.append(os.fsencode(os.path.join(relative, file)))
    return sorted(found)


def _some(names):
    return ", ".join(names[:5]) + (f", ... {len(names)} in all" if len(names) > 5 else "")
