"""Warnings of a training: told when due, told once, silent on runs that go well."""

import numpy as np
import pytest

from sagan_tf.runs.diagnosis import Diagnosis, deviation_over_z

LEARNING = {"discriminator_loss_real": 0.6, "discriminator_loss_fake": 0.7, "logits_real": 0.4, "logits_fake": -0.4}
SATURATED = {"discriminator_loss_real": 0.0, "discriminator_loss_fake": 1e-4, "logits_real": 9.0, "logits_fake": -8.0}


class MetricsTest:
    def test_healthy_run_is_left_in_peace(self):
        assert Diagnosis().of_metrics(1000, LEARNING, {"generator": -0.02, "discriminator": 0.01}) == []

    def test_gamma_that_does_not_move_is_told_once_for_each_network(self):
        diagnosis = Diagnosis()
        assert diagnosis.of_metrics(50, LEARNING, {"generator": 0.0}) == []
        (sentence,) = diagnosis.of_metrics(200, LEARNING, {"generator": 0.0, "discriminator": 0.3})
        assert "gamma of the generator is still exactly 0 at step 200" in sentence
        assert diagnosis.of_metrics(400, LEARNING, {"generator": 0.0}) == []

    def test_saturated_discriminator(self):
        (sentence,) = Diagnosis().of_metrics(10, SATURATED, {})
        assert "--discriminator_learning_rate" in sentence

    def test_one_side_alone_may_be_certain(self):
        assert Diagnosis().of_metrics(10, {**SATURATED, "discriminator_loss_fake": 0.5}, {}) == []


class SamplesTest:
    def test_deviation_is_within_classes(self):
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(3), 500)
        images = labels[:, None, None, None] - 1 + 0.1 * rng.standard_normal((1500, 2, 2, 3))
        assert deviation_over_z(images, labels) == pytest.approx(0.1, rel=0.05)

    def test_collapse(self):
        diagnosis = Diagnosis()
        assert diagnosis.of_samples(100, 0.3) == []
        assert "ignores z" in diagnosis.of_samples(200, 0.006)[0]


class FidTest:
    def test_three_rises_in_a_row(self):
        diagnosis = Diagnosis()
        for fids in ([9.0], [9.0, 10.0, 11.0], [9.0, 10.0, 11.0, 10.5], [9.0, 8.0, 8.5, 8.6]):
            assert diagnosis.of_fids(1, fids) == []
        (sentence,) = diagnosis.of_fids(5, [9.0, 8.0, 8.5, 8.6, 8.7])
        assert "to 8.7 at step 5 (lowest: 8.0)" in sentence
