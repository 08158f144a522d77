"""One device and several give the same training."""

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf import data, distribution
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.train import batches
from sagan_tf.training import METRICS, Trainer

STEPS = 5


def small(**settings):
    defaults = {
        "image_size": 32,
        "gf_dim": 2,
        "df_dim": 4,
        "z_dim": 8,
        "num_classes": 6,
        "attention_resolution": 16,
        "batch_size": 8,
        "sync_batch_norm": True,
        "ema_decay": 0.9,
        # Adam without momentum turns the sign of a rounding error into a whole step; this epsilon keeps
        # rounding errors their size, so that weights can be compared too.
        "adam_epsilon": 0.1,
    }
    return Config(**{**defaults, **settings}).validate()


def strategy_of(replicas):
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    devices = [f"/cpu:{number}" for number in range(replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


class Run:
    def __init__(self, replicas, **settings):
        config = small(**settings)
        self.trainer = Trainer(config, strategy_of(replicas))
        self.trainer.generator.get_layer("attention").gamma.assign(0.5)
        iterator = batches(self.trainer, data.open_source(config))
        first = self.trainer.train(iterator, tf.constant(1)).numpy()
        self.state_after_one_step = self.state()
        self.metrics = np.concatenate([first, self.trainer.train(iterator, tf.constant(STEPS - 1)).numpy()])
        self.final_state = self.state()

    def state(self):
        return {name: np.array(variable) for name, variable in self.trainer.state().items()}


def assert_close(actual, expected, tolerance):
    """Every variable within a part of its own largest entry.

    The biases before a batch norm have a true gradient of zero, so Adam's slots may also differ by a
    part of the norm of all slots of their kind.
    """
    assert set(actual) == set(expected)
    kinds = {name: (name.split("/")[0], name.rsplit("_", 1)[-1]) for name in expected}
    wrong = {}
    for name, value in expected.items():
        allowed = tolerance * np.max(np.abs(value))
        if name.endswith(("_momentum", "_velocity")):
            same_kind = [np.sum(np.square(expected[other])) for other in expected if kinds[other] == kinds[name]]
            allowed += 0.1 * tolerance * np.sqrt(np.sum(same_kind))
        difference = np.max(np.abs(actual[name] - value))
        if difference > max(allowed, tolerance * 1e-3):
            wrong[name] = (difference, allowed)
    assert not wrong


def weights(state):
    return {name: value for name, value in state.items() if not name.endswith(("_momentum", "_velocity"))}


@pytest.fixture(scope="module")
def one_device():
    return Run(1)


class AgreementTest:
    @pytest.mark.parametrize("replicas", [2, 4])
    def test_replicas_agree_with_one_device(self, one_device, replicas):
        run = Run(replicas)
        losses = [METRICS.index(name) for name in METRICS if "norm" not in name]
        np.testing.assert_allclose(run.metrics[:, losses], one_device.metrics[:, losses], rtol=2e-4, atol=2e-5)
        # With beta1 = 0, Adam's momentum is the gradient itself: after one step the replicas' mean gradient is compared.
        assert_close(run.state_after_one_step, one_device.state_after_one_step, 1e-4)
        # Later gradients pass by kinks (ReLU, max-pool) that a rounding error may flip; losses and weights hardly notice.
        assert_close(weights(run.final_state), weights(one_device.final_state), 1e-4)
        for name, variable in run.trainer.state().items():
            copies = getattr(getattr(variable, "value", variable), "values", None)
            if copies is not None and callable(getattr(variable, "assign", None)):
                for copy in copies[1:]:
                    np.testing.assert_array_equal(copy.numpy(), copies[0].numpy(), err_msg=f"replicas of {name} differ")

    def test_replicas_stay_together_with_their_own_batch_moments(self):
        run = Run(2, sync_batch_norm=False)
        mirrored = 0
        for variable in (*run.trainer.generator.variables, *run.trainer.discriminator.variables):
            first, second = variable.value.values
            mirrored += 1
            np.testing.assert_array_equal(first.numpy(), second.numpy(), err_msg=variable.path)
        assert mirrored > 50


class NoiseTest:
    def test_is_a_function_of_seed_step_and_update(self):
        trainer = Trainer(small())
        z, labels = trainer.noise(tf.constant(3, tf.int64), 0)
        np.testing.assert_array_equal(z, trainer.noise(tf.constant(3, tf.int64), 0)[0])
        assert np.abs(z - trainer.noise(tf.constant(3, tf.int64), 1)[0]).max() > 0.1
        assert np.abs(z - trainer.noise(tf.constant(4, tf.int64), 0)[0]).max() > 0.1
        assert labels.shape == (8,)
        assert 0 <= np.min(labels) <= np.max(labels) < 6

    def test_replicas_draw_distinct_parts_of_the_whole(self):
        whole = Trainer(small()).noise(tf.constant(0, tf.int64), 0)[0].numpy()
        trainer = Trainer(small(), strategy_of(2))
        parts = trainer.strategy.run(lambda: trainer.noise(tf.constant(0, tf.int64), 0)[0])
        np.testing.assert_array_equal(np.concatenate([part.numpy() for part in parts.values]), whole)


class StrategyTest:
    def test_batch_must_divide_among_replicas(self):
        with pytest.raises(UserError, match=r"--batch_size=6 .* 4 replicas: choose a multiple of 4"):
            distribution.make_strategy(Config(batch_size=6, distribution="mirrored"))

    def test_multi_worker_without_a_cluster_is_refused(self, monkeypatch):
        for name in ("TF_CONFIG", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UserError, match="TF_CONFIG"):
            distribution.make_strategy(Config(distribution="multi_worker"))

    def test_auto_without_gpus_is_one_device(self):
        strategy = distribution.make_strategy(Config())
        assert strategy.num_replicas_in_sync == 1
        assert distribution.is_chief(strategy)
