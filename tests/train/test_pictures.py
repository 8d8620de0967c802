import numpy as np
import pytest
from PIL import Image

from vision_jax.errors import InputError
from vision_jax.train.pictures import confusion_matrix, prediction_grid

RIGHT, WRONG = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
IMAGES = np.full((3, 8, 8, 1), 128, np.uint8)
NAMES = ["zero", "one", "two"]


def pixels(picture, colour):
    return int((picture == np.array(colour)).all(-1).sum())


def titles(monkeypatch):
    """The texts that the grid draws, as they are drawn."""
    from matplotlib.axes import Axes

    drawn, set_title = [], Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **kw: drawn.append(text) or set_title(self, text, **kw))
    return drawn


def test_grid_marks_the_wrong_ones_by_more_than_colour(tmp_path, monkeypatch):
    drawn = titles(monkeypatch)
    picture = prediction_grid(IMAGES, [0, 1, 2], [0, 1, 0], [0.97, 0.5, 0.123], NAMES, tmp_path / "grid.png")
    assert drawn == ["✓ zero 97%\n", "✓ one 50%\n", "✗ zero 12%\ntrue: two"]
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), picture)
    assert pixels(picture, WRONG) > pixels(picture, RIGHT), "one thick frame is more than two thin ones"
    assert pixels(picture, (128, 128, 128)) > 3 * 80 * 80, "the three images are there"


def test_grid_without_labels_judges_nothing(monkeypatch):
    drawn = titles(monkeypatch)
    picture = prediction_grid(
        IMAGES.repeat(3, -1), None, [0, 1, 2], [1, 0.5, 0.1], ["a very long name, or two", "b", "c"]
    )
    assert drawn == ["a very long na… 100%\n", "b 50%\n", "c 10%\n"]
    assert pixels(picture, RIGHT) == pixels(picture, WRONG) == 0


def test_grid_refuses_what_does_not_fit():
    with pytest.raises(InputError, match=r"float32\[3, 8, 8, 1\]"):
        prediction_grid(IMAGES.astype(np.float32), None, [0] * 3, [0] * 3, NAMES)
    with pytest.raises(InputError, match="predictions has 2 entries for 3 images"):
        prediction_grid(IMAGES, None, [0] * 2, [0] * 3, NAMES)


def texts(monkeypatch):
    from matplotlib.axes import Axes

    drawn, text = [], Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **kw: drawn.append((x, y, s)) or text(self, x, y, s, **kw))
    return drawn


def test_confusion_matrix_of_few_classes_shows_counts(tmp_path, monkeypatch):
    drawn = texts(monkeypatch)
    matrix = np.array([[1500, 2, 0], [0, 0, 0], [1, 0, 7]])
    picture = confusion_matrix(matrix, NAMES, tmp_path / "m.png")
    assert {(x, y, s) for x, y, s in drawn} == {(0, 0, "1,500"), (1, 0, "2"), (0, 2, "1"), (2, 2, "7")}
    assert pixels(picture, (204, 204, 204)) > 1000, "the class without images is grey"
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "m.png")), picture)


def test_confusion_matrix_of_many_classes_lists_the_commonest(monkeypatch):
    drawn = texts(monkeypatch)
    K = 1000
    matrix = np.diag(np.full(K, 40))
    matrix[3, 700], matrix[900, 10] = 9, 11
    picture = confusion_matrix(matrix)
    ((_, _, listed),) = drawn
    assert listed.splitlines()[-2:] == ["    11  900 → 10", "     9  3 → 700"]
    bright = (picture.astype(int).sum(-1) > 450) & (picture[..., 2] < 120)  # the yellow end of the scale
    rows = np.flatnonzero(bright[:, : picture.shape[1] // 2].any(1))
    assert len(rows) >= K, "each cell of the diagonal has a pixel"


def test_confusion_matrix_refuses_what_does_not_fit():
    with pytest.raises(InputError, match=r"shape \[2, 3\]"):
        confusion_matrix(np.ones((2, 3)))
    with pytest.raises(InputError, match="class_names has 2 names for a matrix of 3 classes"):
        confusion_matrix(np.eye(3, dtype=int), ["a", "b"])
