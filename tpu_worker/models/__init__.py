"""Models in plain JAX: a dataclass of sizes, parameter specifications with logical axes, free functions."""
