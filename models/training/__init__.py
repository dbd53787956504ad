"""Training with Lightning: :func:`train` for autoencoders, :func:`train_prior` for priors."""
