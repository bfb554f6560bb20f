"""TensorFlow, imported late, quietly, and without the GPUs: it only reads and writes files here."""

import os

from idrid_jax.errors import UserError


def import_tensorflow():
    """Imports and returns TensorFlow; takes seconds, so only where it is really used. The GPUs stay JAX's."""
    # Without both it greets at every import; oneDNN is for arithmetic that it does not do here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"TensorFlow cannot be imported ({error}): install it, or do without: prepare --notfds and "
            "--config.data.pipeline=resident"
        ) from error

    try:
        tensorflow.config.set_visible_devices([], "GPU")
    except RuntimeError:  # the caller's own TensorFlow code has begun to use them; not ours to take away
        pass
    return tensorflow


def import_tfds():
    """Imports and returns (tensorflow, tensorflow_datasets)."""
    tensorflow = import_tensorflow()
    import tensorflow_datasets

    return tensorflow, tensorflow_datasets
