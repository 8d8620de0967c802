"""What a run tells its people: metrics on disk and in TensorBoard, a progress bar, log messages of one line."""

import json
import logging
import math
import os
import pathlib
import sys
import time

from tqdm import tqdm

from vision_jax.errors import InputError

logger = logging.getLogger(__name__)

_ON_THE_BAR = {"loss": "loss", "images_per_second": "images/s"}  # the last part of a metric's name -> what the bar says


class MetricLog:
    """Metrics of one run: `metrics.jsonl`, TensorBoard events beside it, and a progress bar.

    Where stderr is not a terminal, the bar gives way to a log line at each `write`. In processes other than the first
    all of it does nothing.

    Args:
      workdir: a local directory; made if it is not there.
      total_steps: where the run ends, for the bar and the remaining time.
      resume_step: the step that the run continues from. What an earlier attempt recorded beyond it is dropped.
      process_index: the first process, 0, writes.

    Raises:
      InputError: if `workdir` is not a local directory.
    """

    def __init__(self, workdir, total_steps=None, resume_step=0, process_index=0):
        if "://" in str(workdir):
            raise InputError(f"workdir {str(workdir)!r} is remote: metrics are appended to a file in a local directory")
        self._active = process_index == 0
        if not self._active:
            return
        from tensorboardX import SummaryWriter  # loads protobuf

        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        _drop_beyond(workdir / "metrics.jsonl", resume_step)
        self._lines = open(workdir / "metrics.jsonl", "a")  # noqa: SIM115  closed by close()
        self._events = SummaryWriter(str(workdir), purge_step=resume_step + 1 if resume_step else None, flush_secs=10)
        self._total, self._first, self._start = total_steps, resume_step, time.monotonic()
        self._bar = tqdm(
            total=total_steps, initial=resume_step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def advance(self, step):
        """Moves the bar to a step; cheap enough for each one."""
        if self._active:
            self._bar.update(step - self._bar.n)

    def write(self, step, metrics):
        """Records numbers of a step: in the file at once, in TensorBoard within seconds.

        Args:
          step: the step they belong to.
          metrics: dict name -> number, as {"train/loss": 0.5}. One that is not finite becomes null in the file.
        """
        if not self._active:
            return
        step = int(step)
        metrics = {name: float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._lines.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._tell(step, metrics)

    def images(self, step, images):
        """Shows pictures in TensorBoard: dict name -> uint8 array [H, W, 3]."""
        if not self._active:
            return
        for name, image in images.items():
            self._events.add_image(name, image, int(step), dataformats="HWC")

    def close(self):
        """Ends the bar and the files."""
        if self._active:
            self._bar.close()
            self._lines.close()
            self._events.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _tell(self, step, metrics):
        """The bar shows how training goes; what is rarer, or without a terminal everything, is a line of its own."""
        shown = {name: f"{value:.4g}" for name, value in metrics.items()}
        if not self._bar.disable and any(name.startswith("train/") for name in metrics):
            named = {_ON_THE_BAR.get(name.rpartition("/")[2]): text for name, text in shown.items()}
            self._bar.set_postfix({name: text for name, text in named.items() if name}, refresh=False)
            self.advance(step)
        else:
            place = f"step {step}" + (f"/{self._total}" if self._total else "")
            logger.info("%s  %s%s", place, "  ".join(f"{n} {text}" for n, text in shown.items()), self._remaining(step))

    def _remaining(self, step):
        if not self._total or step <= self._first:
            return ""
        seconds = (time.monotonic() - self._start) / (step - self._first) * (self._total - step)
        return f"  ETA {tqdm.format_interval(max(seconds, 0))}"


def _drop_beyond(path, step):
    """Removes the records after a step, and a last line that was cut off; the file is whole at every moment."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            logger.warning("%s: dropped a line that is no record: %.60s", path, line)
    new = path.with_name(path.name + ".new")
    new.write_text("".join(kept))
    os.replace(new, path)


def configure_logging(process_index=0):
    """Sends log messages to stderr, one line each, above the progress bar.

    The first process tells everything from INFO on; the others only warnings, with their number. The libraries' own
    chatter is left out.

    Args:
      process_index: this process.
    """
    handler = _AboveTheBar()
    where = f" [process {process_index}]" if process_index else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s{where} %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING if process_index else logging.INFO, handlers=[handler], force=True)
    for chatty in ("absl", "jax", "orbax"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # it warns of each number that is not finite


class _AboveTheBar(logging.Handler):
    def emit(self, record):
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)
