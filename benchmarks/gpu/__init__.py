"""What runs on a CUDA machine: the checks and the measurements."""
