"""Convolutional networks on medical images, trained and run across MPI ranks on kernels of its own."""

__version__ = "0.1.0"
