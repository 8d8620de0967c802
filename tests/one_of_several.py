"""One process of a run of several, as tests/train/test_processes.py starts them: the command, watched.

    python one_of_several.py WATCHED ARGUMENTS...

Pictures are left out. Into the directory WATCHED each process writes the examples that it loads: `PROCESS.jsonl`, a
line a batch.
"""

import json
import os
import pathlib
import sys
import threading
import time


def main(watched, argv):
    """The command's exit code."""
    from vision_jax import main as command
    from vision_jax.train import loop

    make = loop.train_batches

    def train_batches(*args, **kwargs):
        import jax

        with make(*args, **kwargs) as batches, (watched / f"{jax.process_index()}.jsonl").open("a") as told:
            for batch in batches:
                told.write(json.dumps(batch["index"].tolist()) + "\n")
                told.flush()
                yield batch

    loop.train_batches = lambda *args, **kwargs: _Closing(train_batches(*args, **kwargs))
    loop.report = lambda *_: {}
    return command.main(argv)


def _end_with(parent):
    """Ends this process once the test that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Closing:
    """A generator that `with` closes."""

    def __init__(self, batches):
        self.batches = batches

    def __next__(self):
        return next(self.batches)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.batches.close()


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    sys.exit(main(pathlib.Path(sys.argv[1]), sys.argv[2:]))
