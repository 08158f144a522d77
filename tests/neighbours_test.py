"""The nearest training images are those that brute force finds."""

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf import pixels
from sagan_tf.data import faces
from sagan_tf.data.arrays import ArraySource
from sagan_tf.metrics import classifiers, neighbours


class NeighboursTest:
    @pytest.fixture(scope="class")
    def source(self):
        """Faces as files hold them: what is planted is equal to the last bit."""
        return ArraySource(pixels.to_uint8(faces.FacesSource(32).examples(tf.range(200, dtype=tf.int64))["images"]))

    def test_equal_brute_force_and_find_a_planted_image(self, source):
        real = source.examples(tf.range(200, dtype=tf.int64))["images"].numpy()
        quantized = pixels.to_uint8(real)
        rng = np.random.default_rng(0)
        queries = np.stack([quantized[131], rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), quantized[5] // 2])
        classifier = classifiers.load("faces")
        by_pixels, by_features = neighbours.nearest_neighbours(queries, source, classifier, 7)
        squares = ((np.int64(queries)[:, None] - np.int64(quantized)) ** 2).sum((2, 3, 4))  # [3, 200]
        order = np.argsort(squares, 1, kind="stable")[:, :7]
        np.testing.assert_array_equal(by_pixels.indices, order)
        np.testing.assert_array_equal(by_pixels.squares, np.take_along_axis(squares, order, 1))
        assert by_pixels.squares[0, 0] == 0
        assert (quantized[by_pixels.indices[0, 0]] == quantized[131]).all()
        features = np.float64(classifier.run(tf.constant(real))[1])
        asked = np.float64(classifier.run(tf.constant(np.float32(queries) / 127.5 - 1))[1])
        distances = np.sqrt(((asked[:, None] - features) ** 2).sum(2))
        np.testing.assert_allclose(np.sqrt(by_features.squares), np.sort(distances, 1)[:, :7], rtol=1e-4, atol=1e-3)
        assert by_features.squares[0, 0] < 1e-6

    def test_keeps_no_more_than_asked(self):
        nearest = neighbours.Nearest(np.zeros((1, 2)), 2)
        for start in (5, 3, 0):
            nearest.add(np.arange(start, start + 2)[:, None] * np.ones(2))
        assert nearest.indices.tolist() == [[4, 5]]
        assert nearest.squares.tolist() == [[0.0, 2.0]]
