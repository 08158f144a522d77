"""One device and several give the same training."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from sagan_tf import data
from sagan_tf.config import Config
from sagan_tf.errors import UserError
from sagan_tf.runs import strategies
from sagan_tf.runs.checkpoints import Checkpoints
from sagan_tf.runs.run import Run, load_run
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
        "augment": "color,translation,cutout",
        # Adam without momentum turns the sign of a rounding error into a whole step; this epsilon keeps
        # rounding errors their size, so that weights can be compared too.
        "adam_epsilon": 0.1,
    }
    return Config(**{**defaults, **settings})


def strategy_of(replicas):
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    devices = [f"/cpu:{number}" for number in range(replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


class Trained:
    def __init__(self, replicas, **settings):
        config = small(**settings)
        self.trainer = Trainer(config, strategy_of(replicas))
        self.trainer.generator.get_layer("attention").gamma.assign(0.5)
        self.initial_state = {name: tf.Variable(variable) for name, variable in self.trainer.state().items()}
        iterator = data.train_iterator(data.open_source(config), config, self.trainer.strategy)
        first = self.trainer.train(iterator, tf.constant(1))[0].numpy()
        self.state_after_one_step = self.state()
        self.metrics = np.concatenate([first, self.trainer.train(iterator, tf.constant(STEPS - 1))[0].numpy()])
        self.final_state = self.state()

    def state(self):
        return {name: np.array(variable) for name, variable in self.trainer.state().items()}

    def initial(self):
        return {name: variable.numpy() for name, variable in self.initial_state.items()}

    def write(self, model_dir):
        """Writes a run that has its first step before it."""
        run = Run.create(self.trainer.config.replace(model_dir=str(model_dir)))
        run.checkpoints.save(0, self.initial_state)
        run.checkpoints.wait()


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


def assert_same_way(actual, expected, initial, tolerance):
    """Each kind of variable (kernels, biases, u, ... of a network) has gone the same way, to a part of its length.

    After several steps this is what can be asked: a rounding error may carry one unit over the kink of its ReLU, and
    then the gradient of that unit's few weights differs by far more than rounding (one such unit: 3e-4 of the way).
    """
    assert set(actual) == set(expected) == set(initial)
    squares = {}
    for name, value in expected.items():
        if name.endswith(("_momentum", "_velocity")):
            continue
        sums = squares.setdefault((name.split("/")[0], name.split("/")[-1]), np.zeros(2))
        sums += [np.sum(np.square(np.float64(actual[name]) - other)) for other in (value, initial[name])]
    assert len(squares) > 20
    wrong = {kind: apart for kind, (apart, way) in squares.items() if apart > tolerance**2 * way}
    assert not wrong


@pytest.fixture(scope="module")
def one_device():
    return Trained(1)


class AgreementTest:
    @pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
    def test_replicas_agree_with_one_device(self, one_device, replicas):
        run = Trained(replicas)
        losses = [METRICS.index(name) for name in METRICS if "norm" not in name]
        np.testing.assert_allclose(run.metrics[:, losses], one_device.metrics[:, losses], rtol=2e-4, atol=2e-5)
        # With beta1 = 0, Adam's momentum is the gradient itself: after one step the replicas' mean gradient is compared.
        assert_close(run.state_after_one_step, one_device.state_after_one_step, 1e-4)
        assert_same_way(run.final_state, one_device.final_state, one_device.initial(), 5e-3)
        for name, variable in run.trainer.state().items():
            copies = getattr(getattr(variable, "value", variable), "values", None)
            if copies is not None and callable(getattr(variable, "assign", None)):
                for copy in copies[1:]:
                    np.testing.assert_array_equal(copy.numpy(), copies[0].numpy(), err_msg=f"replicas of {name} differ")

    def test_replicas_stay_together_with_their_own_batch_moments(self):
        run = Trained(2, sync_batch_norm=False)
        mirrored = 0
        for variable in (*run.trainer.generator.variables, *run.trainer.discriminator.variables):
            first, second = variable.value.values
            mirrored += 1
            np.testing.assert_array_equal(first.numpy(), second.numpy(), err_msg=variable.path)
        assert mirrored > 50

    def test_overflow_on_one_replica_leaves_the_update_out_on_all(self):
        trainer = Trainer(small(mixed_precision="float16", sync_batch_norm=False), strategy_of(2))
        optimizer = trainer.generator_optimizer
        optimizer.dynamic_scale.assign(1024.0)

        @tf.function
        def update(value_on_last_replica):
            def on_replica():
                replica = tf.convert_to_tensor(tf.distribute.get_replica_context().replica_id_in_sync_group)
                z = tf.where(replica == 1, value_on_last_replica, 0.5) * tf.linspace(-1.0, 1.0, 4 * 8)
                return trainer.update_generator(tf.reshape(z, [4, 8]), tf.zeros([4], tf.int32))

            return trainer.strategy.run(on_replica)

        update(0.7)
        before = [variable.numpy() for variable in trainer.generator.trainable_variables]
        update(np.inf)
        assert optimizer.dynamic_scale.numpy() == 512.0
        assert optimizer.inner_optimizer.iterations.numpy() == 1
        for variable, value in zip(trainer.generator.trainable_variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


class Cluster:
    """Worker processes on this machine, which talk over gRPC."""

    def __init__(self, model_dir, *flags, workers=2):
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(workers)]
            addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
        self.processes = []
        for index in range(workers):
            cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "sagan_tf.commands.train",
                    "--distribution=multi_worker",
                    f"--model_dir={model_dir}",
                    *flags,
                ],
                env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self):
        """Waits for all; returns their exit codes and what they printed."""
        outputs = [process.communicate(timeout=300)[0] for process in self.processes]
        return [process.returncode for process in self.processes], outputs

    def wait_for_step(self, checkpoints, step):
        while not any(saved >= step for saved in checkpoints.steps()):
            assert all(process.poll() is None for process in self.processes)
            time.sleep(0.05)


class MultiWorkerTest:
    def test_two_processes_agree_with_one_device(self, one_device, tmp_path):
        one_device.write(tmp_path)
        with Cluster(tmp_path, f"--train_steps={STEPS}", "--save_summaries_steps=1") as cluster:
            codes, outputs = cluster.wait()
        assert codes == [0, 0], outputs
        reader = tf.train.load_checkpoint(Checkpoints(str(tmp_path)).path(STEPS))
        state = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        assert_same_way(state, one_device.final_state, one_device.initial(), 5e-3)
        steps, losses = load_run(str(tmp_path)).scalars()["training/generator_loss"]
        assert steps.tolist() == list(range(1, STEPS + 1))
        expected = one_device.metrics[:, METRICS.index("generator_loss")]
        np.testing.assert_allclose(losses, expected, rtol=2e-4, atol=2e-5)

    @pytest.mark.slow
    def test_killed_and_stopped_workers_continue_to_the_same_end(self, tmp_path):
        flags = ("--dataset=faces", "--image_size=32", "--gf_dim=2", "--df_dim=2", "--z_dim=4", "--attention_resolution=8")
        flags += ("--batch_size=4", "--steps_per_loop=2", "--save_checkpoint_steps=2", "--keep_checkpoints=1000")
        checkpoints = Checkpoints(str(tmp_path / "run"))
        for victim in (1, 0):
            with Cluster(tmp_path / "run", *flags, "--train_steps=100000") as cluster:
                before = checkpoints.steps()[-1] if checkpoints.steps() else 0
                cluster.wait_for_step(checkpoints, before + 4)
                cluster.processes[victim].kill()
                codes, outputs = cluster.wait()
                assert codes[1 - victim] == 75, outputs
                assert "Another worker is gone. Start all of them again" in outputs[1 - victim]
        with Cluster(tmp_path / "run", *flags, "--train_steps=100000") as cluster:
            cluster.wait_for_step(checkpoints, checkpoints.steps()[-1] + 4)
            cluster.processes[1].send_signal(signal.SIGTERM)
            codes, outputs = cluster.wait()
            assert codes == [75, 75], outputs
            stopped = [re.search(r"Interrupted after step (\d+)", output)[1] for output in outputs]
            assert stopped == [str(checkpoints.steps()[-1])] * 2
        end = str(checkpoints.steps()[-1] + 3)
        for name in ("run", "uninterrupted"):
            with Cluster(tmp_path / name, *flags, f"--train_steps={end}") as cluster:
                assert cluster.wait()[0] == [0, 0]
        readers = [tf.train.load_checkpoint(Checkpoints(str(tmp_path / n)).path(int(end))) for n in ("run", "uninterrupted")]
        for name in readers[0].get_variable_to_shape_map():
            np.testing.assert_array_equal(readers[0].get_tensor(name), readers[1].get_tensor(name), err_msg=name)


def noise_and_augmentation(trainer, step=0, update=0):
    """Returns z, of a normal distribution, and the numbers behind augmentation, of a uniform one."""
    step = tf.constant(step, tf.int64)
    return trainer.noise(step, update)[0], trainer.augmentation_draws(step, update)


class DrawsTest:
    def test_are_a_function_of_seed_step_and_update(self):
        trainer, reseeded = Trainer(small()), Trainer(small(seed=1))
        found = noise_and_augmentation(trainer, 3, 0)
        for one, again in zip(found, noise_and_augmentation(trainer, 3, 0), strict=True):
            np.testing.assert_array_equal(one, again)
        for others in (
            noise_and_augmentation(trainer, 3, 1),
            noise_and_augmentation(trainer, 4, 0),
            noise_and_augmentation(reseeded, 3, 0),
        ):
            for one, other in zip(found, others, strict=True):
                assert np.mean(np.isclose(one, other, atol=1e-3)) < 0.1
        labels = trainer.noise(tf.constant(3, tf.int64), 0)[1]
        assert labels.shape == (8,)
        assert 0 <= np.min(labels) <= np.max(labels) < 6

    def test_of_augmentation_are_uniform_and_each_its_own(self):
        draws = noise_and_augmentation(Trainer(small(batch_size=1024)))[1].numpy()
        assert draws.shape == (1024, 2, 7)
        assert 0 <= draws.min() <= draws.max() < 1
        # Of each column quarters as large, to 5 standard deviations, and no two columns go together.
        columns = draws.reshape(1024, 14)
        quarters = [np.histogram(column, 4, (0, 1))[0] for column in columns.T]
        np.testing.assert_allclose(quarters, 256, atol=5 * np.sqrt(256 * 0.75))
        assert np.abs(np.corrcoef(columns.T) - np.eye(14)).max() < 5 / np.sqrt(1024)
        assert len(np.unique(draws)) > 0.99 * draws.size

    def test_replicas_have_distinct_parts_of_the_whole(self):
        trainer = Trainer(small(), strategy_of(2))
        found = trainer.strategy.run(lambda: noise_and_augmentation(trainer))
        for parts, whole in zip(found, noise_and_augmentation(Trainer(small())), strict=True):
            np.testing.assert_array_equal(np.concatenate([part.numpy() for part in parts.values]), whole)

    def test_nothing_is_drawn_where_nothing_is_augmented(self):
        assert noise_and_augmentation(Trainer(small(augment="")))[1] is None


class StrategyTest:
    def test_batch_must_divide_among_replicas(self):
        with pytest.raises(UserError, match=r"--batch_size=6 .* 4 replicas: choose a multiple of 4"):
            strategies.make_strategy(Config(batch_size=6, distribution="mirrored"))

    def test_multi_worker_without_a_cluster_is_refused(self, monkeypatch):
        for name in ("TF_CONFIG", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UserError, match="TF_CONFIG"):
            strategies.make_strategy(Config(distribution="multi_worker"))

    @pytest.mark.parametrize("task", [0, 1])
    def test_cluster_of_a_slurm_job(self, monkeypatch, task):
        """Two nodes without GPUs, as `srun` describes them to its tasks."""
        monkeypatch.delenv("TF_CONFIG", raising=False)
        monkeypatch.setattr(strategies.shutil, "which", lambda _: None)
        job = {"PROCID": str(task), "STEP_NODELIST": "node[07-08]", "STEP_TASKS_PER_NODE": "1(x2)", "STEP_NUM_TASKS": "2"}
        for name, value in job.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        resolver = strategies.cluster_resolver()
        assert resolver.cluster_spec().as_dict() == {"worker": ["node07:8888", "node08:8888"]}
        assert (resolver.task_type, resolver.task_id) == ("worker", task)

    def test_auto_without_gpus_is_one_device(self):
        strategy = strategies.make_strategy(Config())
        assert strategy.num_replicas_in_sync == 1
        assert strategies.is_chief(Config())

    @pytest.mark.parametrize(
        ("jobs", "task", "chief"),
        [
            (("worker",), ("worker", 0), True),
            (("worker",), ("worker", 1), False),
            (("chief", "worker"), ("chief", 0), True),
            (("chief", "worker"), ("worker", 0), False),
        ],
    )
    def test_one_process_of_a_cluster_is_its_chief(self, monkeypatch, jobs, task, chief):
        cluster = {"cluster": {job: ["localhost:1", "localhost:2"] for job in jobs}, "task": {"type": task[0], "index": task[1]}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
        assert strategies.is_chief(Config(distribution="multi_worker")) is chief
