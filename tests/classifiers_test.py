"""The classifiers: every form of SavedModel, the resizing, and what is refused."""

import hashlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from sagan_tf.errors import UserError
from sagan_tf.metrics import classifiers

SIZE = 8
KERNEL = np.random.default_rng(0).standard_normal((SIZE * SIZE * 3, 5)).astype(np.float32)


def outputs(images, logits="logits", pool="pool_3"):
    """What the test classifiers compute: pool_3 is `[N, 1, 1, D]`, as Inception's."""
    flat = tf.reshape(images, [-1, SIZE * SIZE * 3])
    return {logits: tf.matmul(flat, tf.constant(KERNEL)), pool: tf.reshape(flat, [-1, 1, 1, SIZE * SIZE * 3])}


def save_callable(path, **names):
    """A TF2 object that is called, as TF2-Hub modules are."""
    module = tf.Module()
    module.__call__ = tf.function(
        lambda images: outputs(images, **names), input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32)]
    )
    tf.saved_model.save(module, path)


def save_signature(path, **names):
    """A module with a serving signature, as Keras and serving exports have."""
    module = tf.Module()
    function = tf.function(
        lambda images: outputs(images, **names), input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32)]
    )
    module.function = function
    tf.saved_model.save(module, path, signatures={"serving_default": function})


def save_tf1_hub(path, **names):
    """A TF1 graph with the signature `default` and no tags, as the Inception module of TF-GAN is."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [None, SIZE, SIZE, 3])
        signature = tf.compat.v1.saved_model.predict_signature_def({"images": images}, outputs(images, **names))
        builder = tf.compat.v1.saved_model.Builder(path)
        builder.add_meta_graph_and_variables(session, [], {"default": signature})
        builder.save()


def save_keras(path, **names):
    inputs = keras.Input((SIZE, SIZE, 3), name="images")
    flat = keras.layers.Flatten()(inputs)
    dense = keras.layers.Dense(5, use_bias=False)
    model = keras.Model(inputs, {names.get("logits", "logits"): dense(flat), names.get("pool", "pool_3"): flat})
    dense.set_weights([KERNEL])
    model.export(path, verbose=False)


FORMS = [save_callable, save_signature, save_tf1_hub, save_keras]


@pytest.mark.parametrize("save", FORMS)
class SavedModelTest:
    def test_logits_and_features_are_flat_float32(self, tmp_path, save):
        path = str(tmp_path / "model")
        save(path)
        classifier = classifiers.load(path, input_size=SIZE)
        images = np.random.default_rng(1).uniform(-1, 1, (3, SIZE, SIZE, 3)).astype(np.float32)
        logits, pool = classifier.run(tf.constant(images))
        np.testing.assert_allclose(logits, images.reshape(3, -1) @ KERNEL, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(pool, images.reshape(3, -1), rtol=1e-6)

    def test_outputs_of_other_names(self, tmp_path, save):
        path = str(tmp_path / "model")
        save(path, logits="scores", pool="features")
        with pytest.raises(UserError, match="--classifier_logits"):
            classifiers.load(path, input_size=SIZE)
        assert classifiers.load(path, "scores", "features", SIZE).run(tf.zeros([2, SIZE, SIZE, 3]))[0].shape == (2, 5)

    def test_wrong_input_size_is_refused(self, tmp_path, save):
        path = str(tmp_path / "model")
        save(path)
        with pytest.raises(UserError, match="--classifier_size"):
            classifiers.load(path, input_size=SIZE + 4)


class InceptionTest:
    @pytest.mark.parametrize("save", [save_tf1_hub, save_callable])
    def test_is_found_in_the_cache_of_tf_hub(self, tmp_path, monkeypatch, save):
        """The real handle, resolved through TF-Hub without a network: only the input size is this test's."""
        monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(classifiers, "INCEPTION_SIZE", SIZE)
        key = hashlib.sha1(classifiers.INCEPTION_HANDLE.encode()).hexdigest()
        save(str(tmp_path / key))
        classifier = classifiers.load("inception")
        assert classifier.name == "inception"
        assert classifier.run(tf.zeros([2, 4, 4, 3]))[1].shape == (2, SIZE * SIZE * 3)
        assert key in classifiers.inception_source()

    def test_unreachable_without_a_cache_says_what_to_do(self, tmp_path, monkeypatch):
        import tensorflow_hub

        def offline(handle):
            raise OSError("Name or service not known")

        monkeypatch.setattr(tensorflow_hub, "resolve", offline)
        with pytest.raises(UserError, match="--print_classifier_source"):
            classifiers.load("inception")


class ResizeTest:
    def test_is_the_kernel_of_tf1(self):
        """Corner-anchored sampling at `i * in / out`, written out in NumPy."""
        images = np.random.default_rng(0).uniform(-1, 1, (1, 6, 6, 3))
        at = np.arange(11) * 6 / 11
        low = np.floor(at).astype(int)
        high, part = np.minimum(low + 1, 5), (at - low)
        rows = images[:, low] * (1 - part)[None, :, None, None] + images[:, high] * part[None, :, None, None]
        expected = rows[:, :, low] * (1 - part)[None, None, :, None] + rows[:, :, high] * part[None, None, :, None]
        actual = classifiers.resize_bilinear(tf.constant(images, tf.float32), 11)
        np.testing.assert_allclose(actual, expected, atol=1e-6)
        assert np.abs(tf.image.resize(images, [11, 11]) - expected).max() > 0.01  # Today's default is another.

    def test_right_size_is_left_alone(self):
        images = tf.random.stateless_uniform([2, 5, 5, 3], [0, 0])
        np.testing.assert_array_equal(classifiers.resize_bilinear(images, 5), images)

    @pytest.mark.parametrize("shape", [(1, 4, 6, 3), (1, 4, 4, 1), (4, 4, 3)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match="must be"):
            classifiers.resize_bilinear(tf.zeros(shape), 8)


class RefusalTest:
    def test_model_of_several_inputs(self, tmp_path):
        module = tf.Module()
        spec = tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32)
        module.function = tf.function(lambda images, others: outputs(images + others), input_signature=[spec, spec])
        tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.function})
        with pytest.raises(UserError, match="takes images, others, where it should take images alone"):
            classifiers.load(str(tmp_path), input_size=SIZE)

    def test_unknown_name(self):
        with pytest.raises(UserError, match="neither inception, faces"):
            classifiers.load("resnet")

    def test_classifier_of_version_0_1_that_is_gone_is_named_with_its_remedy(self):
        with pytest.raises(UserError, match=r"^The classifier embedded was removed in 0.2, .*: pass --classifier=faces\.$"):
            classifiers.load("embedded")

    def test_directory_without_a_model(self, tmp_path):
        with pytest.raises(UserError, match="cannot be loaded"):
            classifiers.load(str(tmp_path))
