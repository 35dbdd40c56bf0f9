"""abi-jax: a JAX runtime that trains, serves and remembers."""

__version__ = "0.1.0"
