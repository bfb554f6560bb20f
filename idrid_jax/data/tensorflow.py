"""Import TensorFlow late, quietly, and without the GPUs: it only reads and writes files here."""

import os

from idrid_jax.errors import UserError


def import_tensorflow():
    """Import TensorFlow, which takes seconds, and hide the GPUs from it. Raises UserError if it cannot be imported."""
    # Without these, it prints messages when imported; oneDNN speeds up arithmetic, and none is done with it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow
    except ImportError as error:
        raise UserError(
            f"TensorFlow cannot be imported ({error}): install it, or use `prepare --notfds` and "
            "--config.data.pipeline=resident, which do not need it"
        ) from error

    try:
        tensorflow.config.set_visible_devices([], "GPU")
    except RuntimeError:  # the caller's own TensorFlow code already uses the GPUs
        pass
    return tensorflow


def import_tfds():
    """Import and return (tensorflow, tensorflow_datasets)."""
    tensorflow = import_tensorflow()
    import tensorflow_datasets

    return tensorflow, tensorflow_datasets
