"""The thesis's tf.keras DCGAN (3.3.2), as TensorFlow's DCGAN tutorial has it. Layers have the names of ours.

Models of one input, where the tutorial has Sequential ones: the same function. Neither takes grades.
"""

from keras import Input, Model, layers


def generator(latent: int = 100) -> Model:
    """z [B, latent] -> images [B, 28, 28, 1] in [-1, 1]."""
    z = Input((latent,))
    x = layers.Dense(7 * 7 * 256, use_bias=False, name="latent")(z)
    x = layers.BatchNormalization(name="norm0")(x)
    x = layers.LeakyReLU()(x)
    x = layers.Reshape((7, 7, 256))(x)
    x = layers.Conv2DTranspose(128, (5, 5), strides=(1, 1), padding="same", use_bias=False, name="up1")(x)
    x = layers.BatchNormalization(name="norm1")(x)
    x = layers.LeakyReLU()(x)
    x = layers.Conv2DTranspose(64, (5, 5), strides=(2, 2), padding="same", use_bias=False, name="up2")(x)
    x = layers.BatchNormalization(name="norm2")(x)
    x = layers.LeakyReLU()(x)
    x = layers.Conv2DTranspose(1, (5, 5), strides=(2, 2), padding="same", use_bias=False, name="image")(x)
    return Model(z, layers.Activation("tanh")(x))


def discriminator() -> Model:
    """Images [B, 28, 28, 1] -> logits [B, 1]."""
    images = Input((28, 28, 1))
    x = layers.Conv2D(64, (5, 5), strides=(2, 2), padding="same", name="down1")(images)
    x = layers.LeakyReLU()(x)
    x = layers.Dropout(0.3, name="dropout1")(x)
    x = layers.Conv2D(128, (5, 5), strides=(2, 2), padding="same", name="down2")(x)
    x = layers.LeakyReLU()(x)
    x = layers.Dropout(0.3, name="dropout2")(x)
    x = layers.Flatten()(x)
    return Model(images, layers.Dense(1, name="logit")(x))
