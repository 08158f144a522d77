"""Warnings of a training: told when due, told once, silent on runs that go well."""

import numpy as np
import pytest
import scipy.stats

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
    def test_deviation_is_that_of_scipy_in_each_class_pooled(self):
        images, labels = np.random.default_rng(0).normal(size=(9, 4, 4, 3)), np.array([0, 1, 0, 1, 1, 2, 0, 2, 5])
        variances = [scipy.stats.tvar(images[labels == label], axis=0).mean() for label in range(3)]
        assert deviation_over_z(images, labels) == pytest.approx(np.sqrt(np.average(variances, weights=[2, 2, 1])))

    def test_no_class_with_two_images(self):
        assert np.isnan(deviation_over_z(np.zeros((3, 4, 4, 3)), np.arange(3)))

    def test_few_images_of_a_class_deviate_like_many(self):
        images = np.random.default_rng(0).normal(size=(8000, 2, 2, 3))
        assert deviation_over_z(images, np.arange(8000) // 8) == pytest.approx(deviation_over_z(images, np.zeros(8000)), rel=0.01)

    def test_deviation_is_within_classes(self):
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(3), 500)
        images = labels[:, None, None, None] - 1 + 0.1 * rng.standard_normal((1500, 2, 2, 3))
        assert deviation_over_z(images, labels) == pytest.approx(0.1, rel=0.05)

    @staticmethod
    def told(course):
        """Returns at which steps of a course of diversities, by step, something is told, and whether it counts as collapsed."""
        diagnosis = Diagnosis()
        told = [step for step, diversity in course.items() if diagnosis.of_samples(step, diversity, 1000)]
        return told, diagnosis.collapsed

    def test_real_collapses_are_told_of_within_two_grids(self):
        # Small runs on faces, with beta2 of 0.999, seeds 0 and 1; the third has one grid more than was seen.
        assert self.told({1780: 0.86, 2400: 0.72, 3020: 0.12, 3640: 0.06, 4000: 0.07}) == ([3640], True)
        assert self.told({200: 0.87, 600: 0.78, 1000: 0.39, 1200: 0.21, 1400: 0.19}) == ([1400], True)
        assert self.told({3680: 0.62, 4000: 0.21, 4500: 0.2}) == ([4500], True)

    @pytest.mark.parametrize(
        "course",
        [
            # Small runs on faces with beta2 of 0.9, seeds 0 and 1.
            {2000: 0.59, 2500: 0.74, 3100: 0.81, 3700: 0.84, 4000: 0.76},
            {2000: 0.77, 2500: 0.74, 3100: 0.90, 4000: 0.76},
            {1000: 0.8, 2000: 0.2, 3000: 0.5, 4000: 0.1, 5000: 0.6},  # Never two in a row.
            {200: 0.05, 400: 0.05, 800: 0.1, 1000: 0.2, 1200: 0.4},  # Has not learnt anything yet.
            {1000: float("nan"), 2000: float("nan")},
            {1000: 0.1, 2000: float("nan"), 3000: 0.1},
        ],
    )
    def test_healthy_runs_are_left_in_peace(self, course):
        assert self.told(course) == ([], False)

    def test_the_warning_says_what_was_seen_and_what_is_kept(self):
        diagnosis = Diagnosis()
        diagnosis.of_samples(3000, 0.12, 2500)
        (sentence,) = diagnosis.of_samples(3500, 0.06, 2500)
        assert "diversity 0.12 at step 3000 and 0.06 at step 3500" in sentence
        assert "The checkpoint of step 2500 is from before: it is kept." in sentence
        assert diagnosis.of_samples(4000, 0.06, 2500) == []

    def test_the_warning_of_a_run_that_never_was_healthy(self):
        diagnosis = Diagnosis()
        diagnosis.of_samples(1000, 0.1, None)
        assert "No checkpoint is from before that." in diagnosis.of_samples(2000, 0.1, None)[0]


class FidTest:
    def test_three_rises_in_a_row(self):
        diagnosis = Diagnosis()
        for fids in ([9.0], [9.0, 10.0, 11.0], [9.0, 10.0, 11.0, 10.5], [9.0, 8.0, 8.5, 8.6]):
            assert diagnosis.of_fids(1, fids) == []
        (sentence,) = diagnosis.of_fids(5, [9.0, 8.0, 8.5, 8.6, 8.7])
        assert "to 8.7 at step 5 (lowest: 8.0)" in sentence
