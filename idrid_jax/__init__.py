"""GAN training in JAX and Flax on IDRiD: retinal photographs by grade of diabetic retinopathy."""

__version__ = "0.1.0"
