"""What tests of runs share."""

import pytest

from vision_jax.train import loop


@pytest.fixture(scope="module")
def no_pictures():
    """Runs of the module draw none: they take longer than a small run's training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "report", lambda *_: {})
        yield
