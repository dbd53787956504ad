"""Layers that autoencoders and priors share: convolutions over what comes before a position, and dropout."""
