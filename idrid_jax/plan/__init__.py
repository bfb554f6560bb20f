"""What a configuration would take of machines that are not here, by their compilers' account: `idrid-jax plan`."""
