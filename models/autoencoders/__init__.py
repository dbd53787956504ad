"""VAE, VQ-VAE and VQ-VAE-2: the models between images and codes, their parts and their likelihoods."""
