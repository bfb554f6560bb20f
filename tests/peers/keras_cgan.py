"""The thesis's conditional GAN (3.3.1) in Keras, as its source writes it. Layers have the names of ours.

The discriminator gives logits, to be used with BinaryCrossentropy(from_logits=True), where the thesis has a sigmoid.
"""

from keras import Input, Model, layers


def generator(latent: int = 100, grades: int = 5) -> Model:
    """[z [B, latent], grades [B, 1]] -> images [B, 32, 32, 3] in [-1, 1]."""
    in_label = Input((1,), dtype="int32")
    label = layers.Embedding(grades, 50, name="embed")(in_label)
    label = layers.Dense(8 * 8, name="grade")(label)
    label = layers.Reshape((8, 8, 1))(label)
    in_latent = Input((latent,))
    x = layers.Dense(8 * 8 * 128, name="latent")(in_latent)
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.Reshape((8, 8, 128))(x)
    x = layers.Concatenate()([x, label])
    x = layers.Conv2DTranspose(128, (4, 4), strides=(2, 2), padding="same", name="up1")(x)
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.Conv2DTranspose(128, (4, 4), strides=(2, 2), padding="same", name="up2")(x)
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.Conv2D(3, (8, 8), padding="same", name="image")(x)
    return Model([in_latent, in_label], layers.Activation("tanh")(x))


def discriminator(grades: int = 5) -> Model:
    """[images [B, 32, 32, 3], grades [B, 1]] -> logits [B, 1]."""
    in_label = Input((1,), dtype="int32")
    label = layers.Embedding(grades, 50, name="embed")(in_label)
    label = layers.Dense(32 * 32, name="grade")(label)
    label = layers.Reshape((32, 32, 1))(label)
    in_image = Input((32, 32, 3))
    x = layers.Concatenate()([in_image, label])
    x = layers.Conv2D(128, (3, 3), strides=(2, 2), padding="same", name="down1")(x)
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.Conv2D(128, (3, 3), strides=(2, 2), padding="same", name="down2")(x)
    x = layers.LeakyReLU(negative_slope=0.2)(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.4, name="dropout")(x)
    return Model([in_image, in_label], layers.Dense(1, name="logit")(x))
