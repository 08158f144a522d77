"""Where a run computes: from `--distribution` to a `tf.distribute` strategy, and what its processes agree on."""

import os
import shutil
from typing import Any

import tensorflow as tf

from sagan_tf.config import Config
from sagan_tf.errors import UserError

__all__ = ["agree", "cluster_resolver", "is_chief", "is_lost_worker", "make_strategy", "replicas"]


def make_strategy(config: Config) -> tf.distribute.Strategy:
    """Returns the strategy that the configuration asks for.

    auto: all GPUs of this machine (`MirroredStrategy`), or one device if there is none or one.
    mirrored: every GPU, or every logical CPU device where there is no GPU. multi_worker: the
    cluster that `TF_CONFIG` or Slurm describes.

    Raises:
      UserError: if the hardware or the cluster is not there, or the batch does not divide.
    """
    strategy = replicas(config)
    parts = strategy.num_replicas_in_sync * config.accumulation_steps
    if config.batch_size % parts:
        steps = f" and --accumulation_steps={config.accumulation_steps}" if config.accumulation_steps > 1 else ""
        raise UserError(
            f"--batch_size={config.batch_size} does not divide among {strategy.num_replicas_in_sync} replicas{steps}: "
            f"choose a multiple of {parts}."
        )
    if config.jit_compile and strategy.num_replicas_in_sync > 1 and config.distribution != "tpu":
        raise UserError("--jit_compile works on one replica (or a TPU): leave it out, or use --distribution=one_device.")
    return strategy


def replicas(config: Config) -> tf.distribute.Strategy:
    """Returns the strategy alone, whatever batches it is for.

    Raises:
      UserError: if the hardware or the cluster is not there.
    """
    if config.distribution == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=config.tpu or "local")
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
            return tf.distribute.TPUStrategy(resolver)
        except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"No TPU answers at --tpu={config.tpu or 'local'} ({reason}).") from error
    if config.distribution == "multi_worker":
        # Before anything else that starts TensorFlow's devices.
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=cluster_resolver())
    gpus = tf.config.list_logical_devices("GPU")
    if config.distribution == "mirrored" or (config.distribution == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        names = [device.name for device in devices]
        # Logical CPUs share one memory: reducing on one of them is all that is needed.
        reduction = None if gpus else tf.distribute.ReductionToOneDevice()
        return tf.distribute.MirroredStrategy(names, cross_device_ops=reduction)
    return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else "/cpu:0")


def cluster_resolver() -> tf.distribute.cluster_resolver.ClusterResolver:
    """Returns the cluster that the environment describes: `TF_CONFIG`, or that of a Slurm job's tasks.

    Raises:
      UserError: if there is neither.
    """
    if "TF_CONFIG" in os.environ:
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_PROCID" in os.environ:
        options: dict[str, Any] = {}
        if not shutil.which("nvidia-smi"):
            # The resolver counts GPUs by it: where there are none, it is told of one for each task.
            options = {"gpus_per_node": int(os.environ["SLURM_STEP_NUM_TASKS"]), "gpus_per_task": 1, "auto_set_gpu": False}
        return tf.distribute.cluster_resolver.SlurmClusterResolver(**options)
    raise UserError("--distribution=multi_worker finds neither TF_CONFIG nor a Slurm job in the environment: set one.")


def is_chief(config: Config) -> bool:
    """Returns whether this process is the one that writes to `model_dir`.

    Raises:
      UserError: if it is one of several, and the environment does not say which.
    """
    if config.distribution != "multi_worker":
        return True
    resolver = cluster_resolver()
    if not resolver.cluster_spec().jobs or resolver.task_type is None:
        return True
    if "chief" in resolver.cluster_spec().jobs:
        return resolver.task_type == "chief"
    return resolver.task_type == "worker" and resolver.task_id == 0


def agree(strategy: tf.distribute.Strategy, number: int) -> bool:
    """Returns whether all worker processes pass the same number; they wait for each other here."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    numbers = strategy.gather(strategy.run(lambda: tf.constant([number])), axis=0)
    return bool(tf.reduce_all(numbers == number).numpy())


def is_lost_worker(strategy: tf.distribute.Strategy, error: Exception) -> bool:
    """Returns whether an error of TensorFlow says that another worker process has gone."""
    gone = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and isinstance(error, gone)
