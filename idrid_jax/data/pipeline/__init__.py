"""Input pipelines: batches as a function of (seed, step), from device memory or from tf.data."""
