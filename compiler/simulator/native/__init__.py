"""The compiled kernels: their source, how they are built, and how a list of steps is laid out for them."""
