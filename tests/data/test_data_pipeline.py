import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_jax.data import eval_batches, load_source, split_ops, train_batches
from vision_jax.errors import InputError

OPS = ("decode", "random_resized_crop(6, scale=(0.3, 1.0))", "flip", "rand_augment")


def small(num_examples=10):
    return load_source("synthetic", "train", image_size=8, num_examples=num_examples)


def take(count, source=None, ops=OPS, **options):
    options = {"batch_size": 8, "seed": 1} | options
    with train_batches(source or small(), split_ops(ops)[0], **options) as batches:
        return list(itertools.islice(batches, count))


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert np.array_equal(a[key], b[key]), key


def shares(processes, rows=8):
    """The rows of each process: a run of them; with two, as a torus may lay a mesh over them, two runs."""
    return [(0, 1, 4, 5), (2, 3, 6, 7)] if processes == 2 else np.arange(rows).reshape(processes, -1).tolist()


def joined(parts, rows):
    """Each process's batches -> the batches of all, whose rows are these."""
    order = np.argsort(np.concatenate(rows))
    return [{key: np.concatenate([b[key] for b in row])[order] for key in row[0]} for row in zip(*parts, strict=True)]


def test_batches_have_the_promised_arrays():
    (batch,) = take(1, load_source("digits", "train"), ("decode", "resize(12)"))
    shapes = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert shapes == {
        "image": ((8, 12, 12, 3), np.uint8),
        "label": ((8,), np.int32),
        "index": ((8,), np.int64),
        "replaced": ((8,), np.bool_),
    }
    source = load_source("digits", "train")
    assert batch["label"].tolist() == [source[int(i)]["label"] for i in batch["index"]]
    for image, i in zip(batch["image"], batch["index"], strict=True):
        scan = Image.fromarray(source[int(i)]["image"][..., 0]).convert("RGB")
        assert np.array_equal(image, np.asarray(scan.resize((12, 12), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_example_once_an_epoch_and_the_same_batch_for_any_process_count(processes):
    N, steps = 10, 15  # 15 batches of 8 are 12 epochs of 10; batches straddle them
    parts = [take(steps, rows=rows) for rows in shares(processes)]
    whole = joined(parts, shares(processes))
    assert_same(whole, take(steps))
    epochs = np.concatenate([b["index"] for b in whole]).reshape(-1, N)
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(N), (len(epochs), 1)))
    assert len({tuple(e) for e in epochs}) == len(epochs)


def test_repeated_examples_follow_each_other_and_look_different():
    N, steps, ops = 10, 15, ("random_crop(6)", "color_jitter(0.5, 0.5, 0.5)")
    whole = take(steps, ops=ops, repeats=3)
    plain = np.concatenate([b["index"] for b in take(steps)]).reshape(-1, N)
    repeated = np.concatenate([b["index"] for b in whole]).reshape(-1, N)
    assert np.array_equal(repeated, np.repeat(plain, 3, axis=1)[:, :N])
    images = [image.tobytes() for b in whole for image in b["image"]]
    assert len(set(images)) == len(images)
    assert_same(whole[7:], take(steps - 7, ops=ops, repeats=3, start=7))


def test_pixels_depend_on_seed_epoch_and_index():
    ops = ("random_crop(6)", "color_jitter(0.5, 0.5, 0.5)")
    a, again, b = take(20, small(3), ops), take(20, small(3), ops), take(20, small(3), ops, seed=2)
    assert_same(a, again)
    looks = {(int(i), image.tobytes()) for batch in a for i, image in zip(batch["index"], batch["image"], strict=True)}
    assert len(looks) == 160  # 54 epochs of 3, each of its own look
    other = {(int(i), image.tobytes()) for batch in b for i, image in zip(batch["index"], batch["image"], strict=True)}
    assert not looks & other


def test_seeds_are_not_shifted_epochs_of_each_other():
    def orders(seed):
        batches = take(20, small(8), ("flip",), seed=seed)
        return {tuple(b["index"].tolist()) for b in batches}

    assert not orders(0) & orders(1)


def test_workers_and_resume_change_nothing():
    whole = take(11)
    assert_same(take(8, start=3), whole[3:])
    assert_same(take(11, workers=2), whole)
    assert_same(take(6, start=5, workers=1), whole[5:])
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_four_workers_and_resume_with_another_count():
    whole = take(23)
    assert_same(take(23, workers=4), whole)
    for start, workers in ((1, 4), (7, 3), (22, 2)):
        assert_same(take(23 - start, start=start, workers=workers), whole[start:])


def test_resume_costs_the_same_anywhere():
    far = 10**11
    (batch,) = take(1, start=far)
    (again,) = take(1, start=far)
    assert_same([batch], [again])
    assert set(batch["index"]) <= set(range(10))


def test_one_example_and_batches_larger_than_the_source():
    batches = take(2, small(1))
    assert [b["index"].tolist() for b in batches] == [[0] * 8] * 2
    assert len({image.tobytes() for image in batches[0]["image"]}) > 4


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("num_examples", [1, 8, 17])
def test_eval_batches_cover_everything_once(num_examples, processes):
    source, host_ops = small(num_examples), split_ops(("decode",))[0]
    parts = []
    for rows in shares(processes):
        with eval_batches(source, host_ops, batch_size=8, rows=rows) as batches:
            parts.append(list(batches))
    assert {len(p) for p in parts} == {-(-num_examples // 8)}
    whole = joined(parts, shares(processes))
    assert whole[0].keys() == {"image", "label", "index", "mask"}
    assert {b["image"].shape for b in whole} == {(8, 8, 8, 3)}
    mask = np.concatenate([b["mask"] for b in whole])
    assert mask.dtype == np.bool_
    assert np.concatenate([b["index"] for b in whole])[mask].tolist() == list(range(num_examples))
    image = np.concatenate([b["image"] for b in whole])[mask]
    assert np.array_equal(image[-1], source[num_examples - 1]["image"])


def test_eval_batches_with_workers():
    source, host_ops = small(21), split_ops(("center_crop(4)",))[0]
    assert_same(
        list(eval_batches(source, host_ops, batch_size=4, workers=2)),
        list(eval_batches(source, host_ops, batch_size=4)),
    )
    assert not multiprocessing.active_children()


@pytest.fixture
def damaged(tmp_path):
    """Twelve images of which 3 are not: text, cut short, empty."""
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(np.full((9, 9, 3), 40 * i, np.uint8)).save(tmp_path / name / f"{i}.jpg")
    (tmp_path / "ant" / "1.jpg").write_text("hello")
    (tmp_path / "ant" / "4.jpg").write_bytes((tmp_path / "ant" / "4.jpg").read_bytes()[:-20])
    (tmp_path / "bee" / "2.jpg").write_bytes(b"")
    return load_source("folder", "all", root=tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_stops_with_its_name(damaged, workers):
    with pytest.raises(InputError) as caught:
        take(3, damaged, ("decode",), workers=workers)
    assert any(damaged.name(i) in str(caught.value) for i in (1, 4, 8))
    assert not multiprocessing.active_children()
    with pytest.raises(InputError, match=r"1\.jpg: not an image"):
        list(eval_batches(damaged, split_ops(("decode",))[0], batch_size=4))


def test_damaged_image_is_replaced_always_by_the_same(damaged):
    batches = take(9, damaged, ("decode",), on_error="replace")
    index, replaced = (np.concatenate([b[key] for b in batches]).reshape(6, 12) for key in ("index", "replaced"))
    assert (replaced.sum(1) == 3).all()
    assert not np.isin(index, (1, 4, 8)).any()
    for epoch, flags in zip(index, replaced, strict=True):
        assert np.array_equal(np.sort(epoch[~flags]), [0, 2, 3, 5, 6, 7, 9, 10, 11])
    assert len({tuple(np.sort(epoch[flags])) for epoch, flags in zip(index, replaced, strict=True)}) == 1
    labels = np.concatenate([b["label"] for b in batches]).reshape(6, 12)
    assert np.array_equal(labels, index // 6)


def test_a_file_that_vanishes_is_a_damaged_image(damaged):
    Path(damaged.name(0)).unlink()
    with pytest.raises(InputError, match=r"0\.jpg: .*No such file"):
        list(eval_batches(damaged, split_ops(("decode",))[0], batch_size=4))
    batches = take(3, damaged, ("decode",), on_error="replace")
    assert sum(b["replaced"].sum() for b in batches) == 8


def test_nothing_but_damaged_images(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "0.png").write_text("hello")
    source = load_source("folder", "all", root=tmp_path)
    with pytest.raises(InputError, match="damaged data"):
        take(1, source, ("decode",), on_error="replace")


def test_a_mistake_in_the_ops_is_not_replaced(damaged):
    with pytest.raises(InputError, match="jpg: random_crop: size"):
        take(1, damaged, ("decode", "random_crop(10)"), on_error="replace")


def test_images_of_several_shapes(tmp_path):
    (tmp_path / "ant").mkdir()
    for i, width in enumerate((8, 9)):
        Image.fromarray(np.zeros((8, width, 3), np.uint8)).save(tmp_path / "ant" / f"{i}.png")
    source = load_source("folder", "all", root=tmp_path)
    with pytest.raises(InputError, match=r"\[8, 8, 3\] of .*0.png, \[8, 9, 3\] of .*1.png"):
        list(eval_batches(source, split_ops(("decode",))[0], batch_size=2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"rows": (6, 7, 8)}, r"rows are some of the 8 of a batch, ascending: given \[6, 7, 8\]"),
        ({"rows": (1, 0)}, "ascending"),
        ({"rows": ()}, "rows"),
        ({"seed": -1}, "seed is not negative"),
        ({"start": -1}, "start is not negative"),
        ({"workers": -1}, "workers is not negative"),
        ({"repeats": 0}, "repeats is at least 1"),
        ({"on_error": "skip"}, "unknown on_error 'skip'"),
    ],
)
def test_wrong_arguments(options, said):
    with pytest.raises(InputError, match=said):
        take(1, **options)


def test_close_may_be_called_again_and_ends_the_iteration():
    batches = train_batches(small(), split_ops(OPS)[0], batch_size=2, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


SCRIPT = """
import os, sys, multiprocessing
from vision_jax.data import load_source, split_ops, train_batches

def main():
    source = load_source("synthetic", "train", image_size=8)
    batches = train_batches(source, split_ops(("flip",))[0], batch_size=4, seed=0, workers=2)
    next(batches)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    if sys.argv[1] == "wait":
        sys.stdin.read()

if __name__ == "__main__":
    main()
"""


def start_script(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds):
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(alive, pids))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_parent_leaves_no_worker(tmp_path):
    parent = start_script(tmp_path, "wait")
    pids = [int(p) for p in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    for pid in pids:  # what a scheduler and Ctrl-C send to the whole group must not take the data away
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert not gone(pids, 1)
    parent.kill()
    parent.wait()
    assert gone(pids, 10)


@pytest.mark.slow
def test_a_script_that_forgets_to_close_ends(tmp_path):
    parent = start_script(tmp_path, "leave")
    pids = [int(p) for p in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert parent.wait(timeout=30) == 0
    assert gone(pids, 10)
