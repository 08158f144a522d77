"""Settings of the whole test suite, made before TensorFlow starts."""

import importlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
    importlib.import_module("sagan_tf.commands")  # Before TensorFlow: it lets glibc keep memory, as in every command.
    import tensorflow as tf

    # Four logical CPUs, for the tests of distribution.
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
