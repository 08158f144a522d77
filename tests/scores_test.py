"""The metrics against TF-GAN 2.1.0's own values, and NumPy and SciPy in float64."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.special

from sagan_tf.metrics import scores

GOLDEN = np.load(os.path.join(os.path.dirname(__file__), "golden", "metrics.npz"))
RNG = np.random.default_rng(0)


def frechet_oracle(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The eigenvalues of ca cb are real and not negative: no matrix square root of a singular product is needed.
    root = np.sqrt(np.maximum(scipy.linalg.eigvals(ca @ cb).real, 0.0)).sum()
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca) + np.trace(cb) - 2 * root


class GoldenTest:
    def test_inception_score(self):
        for name in ("real", "generated"):
            score = scores.inception_score(GOLDEN[f"{name}_logits"])
            np.testing.assert_allclose(score, GOLDEN[f"inception_score_{name}"], rtol=1e-5)

    def test_frechet_distance(self):
        distance = scores.frechet_distance(GOLDEN["real_pool"], GOLDEN["generated_pool"])
        np.testing.assert_allclose(distance, GOLDEN["fid"], rtol=1e-5)

    def test_kernel_distance(self):
        distance = scores.kernel_distance(GOLDEN["real_pool"], GOLDEN["generated_pool"])
        np.testing.assert_allclose(distance, GOLDEN["kid"], rtol=1e-5)


class FrechetDistanceTest:
    @pytest.mark.parametrize(("count", "dimensions"), [(500, 20), (30, 60)])
    def test_matches_scipy(self, count, dimensions):
        mix = RNG.standard_normal((dimensions, dimensions))
        a = RNG.standard_normal((count, dimensions)) @ mix
        b = RNG.standard_normal((count + 7, dimensions)) @ mix * 1.1 + 0.3
        np.testing.assert_allclose(scores.frechet_distance(a, b), frechet_oracle(a, b), rtol=1e-6)

    def test_same_set_is_zero(self):
        a = RNG.standard_normal((200, 10))
        assert abs(scores.frechet_distance(a, a)) < 1e-10

    def test_batches_give_the_moments_of_the_whole(self):
        a = RNG.standard_normal((1000, 8)) * 3 + 1000
        moments = scores.Moments(8)
        for part in np.array_split(a, 7):
            moments.add(part)
        np.testing.assert_allclose(moments.mean, a.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance, np.cov(a, rowvar=False), rtol=1e-9, atol=1e-9)
        again = scores.Moments.of(moments.count, moments.mean, moments.covariance)
        np.testing.assert_allclose(again.add(a[:10]).mean, np.concatenate([a, a[:10]]).mean(0), rtol=1e-12)


class InceptionScoreTest:
    def oracle(self, logits):
        p = scipy.special.softmax(logits, axis=1)
        return np.exp(np.mean(np.sum(scipy.special.rel_entr(p, p.mean(0)), axis=1)))

    def test_matches_scipy(self):
        logits = RNG.standard_normal((600, 12)) * 3
        np.testing.assert_allclose(scores.inception_score(logits), self.oracle(logits), rtol=1e-6)
        expected = np.mean([self.oracle(part) for part in np.split(logits, 10)])
        np.testing.assert_allclose(scores.inception_score(logits, splits=10), expected, rtol=1e-6)

    def test_one_hot_logits_score_their_number_of_classes(self):
        np.testing.assert_allclose(scores.inception_score(np.eye(10).repeat(5, 0) * 1e4), 10.0, rtol=1e-6)

    def test_splits_must_divide(self):
        with pytest.raises(ValueError, match="do not divide into 7"):
            scores.inception_score(np.zeros((10, 3)), splits=7)


class KernelDistanceTest:
    def test_matches_numpy(self):
        a, b = RNG.standard_normal((90, 6)), RNG.standard_normal((80, 6)) + 0.5

        def kernel(x, y):
            return (x @ y.T / 6 + 1) ** 3

        def off_diagonal_mean(k):
            return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

        expected = off_diagonal_mean(kernel(a, a)) + off_diagonal_mean(kernel(b, b)) - 2 * kernel(a, b).mean()
        np.testing.assert_allclose(scores.kernel_distance(a, b), expected, rtol=1e-6)


class ManifoldMetricsTest:
    def brute_force(self, real, generated, k):
        def distance(a, b):
            return np.linalg.norm(a[:, None] - b[None], axis=-1)

        def radius(x):
            return np.sort(distance(x, x), axis=1)[:, k]

        between = distance(real, generated)
        in_real = between < radius(real)[:, None]
        return {
            "precision": in_real.any(0).mean(),
            "recall": (between < radius(generated)[None]).any(1).mean(),
            "density": in_real.sum(0).mean() / k,
            "coverage": in_real.any(1).mean(),
        }

    def test_matches_brute_force(self):
        real, generated = RNG.standard_normal((120, 4)), RNG.standard_normal((100, 4)) * 0.7 + 0.4
        expected = self.brute_force(real, generated, 5)
        actual = scores.manifold_metrics(real, generated, neighbours=5, block=33)
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol=1e-12)


class BadInputTest:
    @pytest.mark.parametrize("function", [scores.frechet_distance, scores.kernel_distance, scores.manifold_metrics])
    def test_values_that_are_not_finite_are_refused(self, function):
        good, bad = np.zeros((20, 3)), np.zeros((20, 3))
        bad[4, 1] = np.nan
        with pytest.raises(ValueError, match="not finite"):
            function(good, bad)


class ImportTest:
    def test_leaves_no_hollow_packages_behind(self):
        code = "import sys; from sagan_tf.metrics import scores; print(scores.tfgan.__name__)"
        code += "; assert 'tensorflow_gan' not in sys.modules"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
        assert result.stdout.strip() == "tensorflow_gan.python.eval.classifier_metrics"
