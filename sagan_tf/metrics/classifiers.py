"""The classifiers that metrics are computed with, and the exact way images are put into them.

A classifier is a function from images to `logits` `[N, K]` and `pool` (features) `[N, D]`, with a
description that goes into the protocol of every result.
"""

import dataclasses
import hashlib
import importlib.resources
import io
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from sagan_tf.config import Config
from sagan_tf.data.faces import EXPRESSIONS
from sagan_tf.errors import UserError

__all__ = ["Classifier", "faces_network", "inception_source", "load", "of", "resize_bilinear"]

# TF-GAN's Inception graph of 2015 (1008 logits, pool_3 of 2048), the one behind the published numbers.
INCEPTION_HANDLE = "https://tfhub.dev/tensorflow/tfgan/eval/inception/1"
INCEPTION_SIZE = 299

# The classifier that ships with the package, for the dataset faces: its weights, what it takes and tells.
FACES_FILE = "faces_classifier.npz"
FACES_SIZE, IRIS_BINS = 32, 6


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier and what to say about it.

    Attributes:
      name: as given on the command line.
      run: images `[N, H, W, 3]` float32 in [-1, 1] to (`logits` `[N, K]`, `pool` `[N, D]`), float32.
      digest: SHA-256 of its weights, the first 16 hex digits.
      resize: how images are brought to its input size.
      class_names: what its logits stand for, in their order; empty: not known.
    """

    name: str
    run: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    digest: str
    resize: str
    class_names: tuple[str, ...] = ()

    def protocol(self) -> dict[str, str]:
        """Returns what identifies it in a result."""
        return {"classifier": self.name, "classifier_sha256": self.digest, "resize": self.resize}


def resize_bilinear(images: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes as TF1's `resize_bilinear` did by default: no half-pixel centres, no antialiasing.

    The published Inception Scores and FIDs used this kernel; today's default gives other values.

    Args:
      images: float32 `[N, H, W, 3]`.
      size: height and width of the result.

    Raises:
      ValueError: if the images are not square with three channels.
    """
    if images.shape.rank != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be [N, S, S, 3], not {images.shape}")
    if images.shape[1] == size:
        return images
    return tf.compat.v1.image.resize_bilinear(images, [size, size], align_corners=False, half_pixel_centers=False)


def of(config: Config) -> Classifier:
    """Returns the classifier that a configuration names (see `load`)."""
    return load(config.classifier, config.classifier_logits, config.classifier_pool, config.classifier_size)


def load(name: str, logits: str = "logits", pool: str = "pool_3", input_size: int = INCEPTION_SIZE) -> Classifier:
    """Returns a classifier.

    Args:
      name: `inception`, `faces`, or the directory of a SavedModel.
      logits: output of a SavedModel with the logits.
      pool: output of a SavedModel with the features.
      input_size: height and width that a SavedModel takes; `inception` takes 299.

    Raises:
      UserError: if it cannot be found or has other outputs.
    """
    if name == "faces":
        return _faces()
    if name == "embedded":
        raise UserError("The classifier embedded was removed in 0.2, with the dataset twins: pass --classifier=faces.")
    if name == "inception":
        path = _resolve_inception()
        return _saved_model("inception", path, "logits", "pool_3", INCEPTION_SIZE)
    if not os.path.isdir(name):
        raise UserError(f"--classifier={name} is neither inception, faces, nor the directory of a SavedModel.")
    return _saved_model(name, name, logits, pool, input_size)


def inception_source() -> str:
    """Returns what an offline user has to fetch, and where to put it."""
    cache = os.environ.get("TFHUB_CACHE_DIR") or os.path.join("$TMPDIR", "tfhub_modules")
    key = hashlib.sha1(INCEPTION_HANDLE.encode()).hexdigest()
    return "\n".join(
        [
            f"The classifier `inception` is the TF-Hub module {INCEPTION_HANDLE}",
            f"(fetch {INCEPTION_HANDLE}?tf-hub-format=compressed, a .tar.gz with saved_model.pb in it).",
            "Either unpack it into any directory and pass --classifier=THAT_DIRECTORY,",
            f"or set TFHUB_CACHE_DIR and unpack it into $TFHUB_CACHE_DIR/{key}",
            f"(now: {os.path.join(cache, key)}), where --classifier=inception finds it without a network.",
        ]
    )


def _resolve_inception() -> str:
    import tensorflow_hub as hub

    try:
        return hub.resolve(INCEPTION_HANDLE)
    except Exception as error:  # TF-Hub lets through whatever its network library raises.
        raise UserError(
            f"The Inception classifier is neither cached nor reachable ({str(error).splitlines()[0]}). Fetch it once where "
            "there is a network; sagan-evaluate --print_classifier_source says what, and where to put it."
        ) from error


def _digest_directory(path: str) -> str:
    """Returns the digest of a SavedModel: its graph and its weights, not their file names' order on disk."""
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(path):
        folders.sort()
        for file in sorted(files):
            if file == "fingerprint.pb":
                continue
            digest.update(os.path.relpath(os.path.join(parent, file), path).encode())
            with open(os.path.join(parent, file), "rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _saved_model(name: str, path: str, logits: str, pool: str, size: int) -> Classifier:
    """Returns the classifier in a SavedModel: a callable object, or one with a default signature."""
    try:
        model = tf.saved_model.load(path)
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(f"The classifier {path} cannot be loaded as a SavedModel ({str(error).splitlines()[0]}).") from error
    signatures = getattr(model, "signatures", {})
    signature = next((signatures[key] for key in ("serving_default", "default") if key in signatures), None)
    if signature is not None:
        arguments = list(signature.structured_input_signature[1]) or ["images"]
        if len(arguments) > 1:
            raise UserError(f"The classifier {path} takes {', '.join(sorted(arguments))}, where it should take images alone.")
        (argument,) = arguments

        def call(images):
            return signature(**{argument: images})
    elif callable(model):
        call = model
    else:
        raise UserError(f"The SavedModel {path} is not callable and has no serving_default or default signature.")

    @tf.function(reduce_retracing=True)
    def run(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = call(resize_bilinear(images, size))
        values = [tf.reshape(outputs[key], [tf.shape(images)[0], -1]) for key in (logits, pool)]
        return tuple(tf.cast(value, tf.float32) for value in values)

    # Fails here, not hours later, where the outputs are called something else or the size is wrong.
    try:
        run(tf.zeros([1, size, size, 3]))
    except KeyError as error:
        found = ", ".join(sorted(call(tf.zeros([1, size, size, 3]))))
        raise UserError(
            f"The classifier {path} has no output {error}; it has {found}: name them with --classifier_logits "
            "and --classifier_pool."
        ) from error
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"The classifier {path} does not take images of {size}x{size} pixels and return a dictionary "
            f"({str(error).splitlines()[0]}): see --classifier_size."
        ) from error
    run.model = model  # Its variables live as long as it does.
    return Classifier(name, run, _digest_directory(path), f"tf1_bilinear_{size}")


def faces_network() -> keras.Model:
    """Returns the untrained classifier of `faces`: images of 32 px to class logits, features, and logits of iris hues.

    It is trained to name the expression and the hue of each iris, in six bins, so that its features see what
    agreement is about (`tools/train_faces_classifier.py`).
    """
    images = x = keras.Input((FACES_SIZE, FACES_SIZE, 3), name="images")
    for number, width in enumerate((16, 32, 64)):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu", name=f"conv_{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    features = keras.layers.Dense(64, activation="relu", name="features")(x)
    logits = keras.layers.Dense(len(EXPRESSIONS), name="logits")(features)
    irises = keras.layers.Dense(2 * IRIS_BINS, name="irises")(features)
    return keras.Model(images, [logits, features, irises], name="faces_classifier")


def _faces() -> Classifier:
    content = importlib.resources.files("sagan_tf").joinpath("assets").joinpath(FACES_FILE).read_bytes()
    model = faces_network()
    weights = np.load(io.BytesIO(content))
    model.set_weights([weights[variable.path].astype(np.float32) for variable in model.variables])

    @tf.function(reduce_retracing=True)
    def run(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Thin lines survive an average over areas, and not the picking of pixels.
        logits, features, _ = model(tf.image.resize(images, [FACES_SIZE, FACES_SIZE], method="area"), training=False)
        return logits, features

    return Classifier("faces", run, hashlib.sha256(content).hexdigest()[:16], f"area_{FACES_SIZE}", EXPRESSIONS)
