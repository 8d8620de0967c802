import json
import logging
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from vision_jax.errors import InputError
from vision_jax.train.logs import MetricLog, configure_logging


def records(workdir):
    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    return [
        json.loads(line, parse_constant=no_constant) for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def events(workdir):
    """The events of all TensorBoard files: each lies between a length, its checksum and a checksum of its own."""
    for path in sorted(workdir.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


@pytest.fixture
def restored_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_metrics_are_on_disk_at_once(tmp_path):
    log = MetricLog(tmp_path / "run")
    log.write(jnp.int32(1), {"train/loss": jnp.float32(0.5), "train/lr": 1})
    log.write(2, {"train/loss": float("nan"), "train/grad_norm": float("inf")})
    assert records(tmp_path / "run") == [
        {"step": 1, "train/loss": 0.5, "train/lr": 1.0},
        {"step": 2, "train/loss": None, "train/grad_norm": None},
    ]
    log.images(2, {"predictions": np.full((4, 6, 3), 9, np.uint8)})
    log.close()
    values = [(e.step, v.tag, v) for e in events(tmp_path / "run") for v in e.summary.value]
    assert [(step, tag) for step, tag, _ in values] == [
        (1, "train/loss"), (1, "train/lr"), (2, "train/loss"), (2, "train/grad_norm"), (2, "predictions"),
    ]  # fmt: skip
    assert values[0][2].simple_value == 0.5
    image = values[-1][2].image
    assert (image.height, image.width, image.colorspace) == (4, 6, 3)


def test_a_resumed_run_continues_the_record(tmp_path):
    with MetricLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(step, {"train/loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 20, "train/lo')  # the run was killed here
    with MetricLog(tmp_path, resume_step=20) as log:
        assert [r["step"] for r in records(tmp_path)] == [10, 20]
        log.write(30, {"train/loss": -1.0})
    assert records(tmp_path)[1:] == [{"step": 20, "train/loss": 20.0}, {"step": 30, "train/loss": -1.0}]
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("events.")] == ["metrics.jsonl"]
    starts = [e.step for e in events(tmp_path) if e.session_log.status == e.session_log.START]
    assert starts == [21], "TensorBoard is told to forget what came after the step resumed from"


def test_only_the_first_process_writes(tmp_path, capfd):
    with MetricLog(tmp_path / "run", process_index=1) as log:
        log.advance(1)
        log.write(1, {"train/loss": 1.0})
        log.images(1, {"x": np.zeros((2, 2, 3), np.uint8)})
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr().err == ""


def test_a_remote_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="'gs://bucket/run' is remote"):
        MetricLog("gs://bucket/run")


def test_without_a_terminal_each_write_is_a_line(tmp_path, capfd, restored_logging):
    configure_logging()
    with MetricLog(tmp_path, total_steps=100, resume_step=10) as log:
        log.advance(15)
        log.write(20, {"train/loss": 0.123456, "train/images_per_second": 51234.5})
    (line,) = capfd.readouterr().err.splitlines()
    assert "step 20/100  train/loss 0.1235  train/images_per_second 5.123e+04  ETA 00:0" in line


def test_on_a_terminal_training_moves_the_bar(tmp_path, capsys, restored_logging, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    configure_logging()
    with MetricLog(tmp_path, total_steps=100, resume_step=10) as log:
        for step in range(11, 21):
            log.advance(step)
        log.write(20, {"train/loss": 0.5, "train/images_per_second": 812.3, "train/lr": 1e-3})
        log._bar.refresh()
        log.write(20, {"val/accuracy": 0.75})
    out = capsys.readouterr().err
    assert "20/100" in out
    assert "loss=0.5, images/s=812" in out
    assert "lr=" not in out
    assert "step 20/100  val/accuracy 0.75" in out


def test_messages_are_one_line_each(capfd, restored_logging):
    configure_logging()
    logging.getLogger("vision_jax.x").info("step %d", 3)
    logging.getLogger("absl").info("chatter")
    line = capfd.readouterr().err
    assert line.endswith(" I step 3\n")
    assert line.count("\n") == 1
    configure_logging(process_index=2)
    logging.getLogger("vision_jax.x").info("not told")
    logging.getLogger("vision_jax.x").warning("told")
    assert capfd.readouterr().err.endswith(" W [process 2] told\n")
