"""The losses against NumPy in float64."""

import numpy as np
import pytest
from keras import ops

from sagan_tf import losses

REAL, FAKE = np.array([[2.0], [0.3], [-1.5]]), np.array([[-3.0], [0.4], [0.0]])


class LossTest:
    def test_hinge(self):
        real, fake = losses.discriminator_loss(ops.convert_to_tensor(REAL), ops.convert_to_tensor(FAKE), "hinge")
        np.testing.assert_allclose(real, np.maximum(1 - REAL, 0).mean(), rtol=1e-6)
        np.testing.assert_allclose(fake, np.maximum(1 + FAKE, 0).mean(), rtol=1e-6)

    def test_kl(self):
        real, fake = losses.discriminator_loss(ops.convert_to_tensor(REAL), ops.convert_to_tensor(FAKE), "kl")
        np.testing.assert_allclose(real, np.log1p(np.exp(-REAL)).mean(), rtol=1e-6)
        np.testing.assert_allclose(fake, np.log1p(np.exp(FAKE)).mean(), rtol=1e-6)

    def test_generator(self):
        np.testing.assert_allclose(losses.generator_loss(ops.convert_to_tensor(FAKE)), -FAKE.mean(), rtol=1e-6)

    def test_unknown_type_is_refused(self):
        with pytest.raises(ValueError, match="wasserstein"):
            losses.discriminator_loss(ops.convert_to_tensor(REAL), ops.convert_to_tensor(FAKE), "wasserstein")
