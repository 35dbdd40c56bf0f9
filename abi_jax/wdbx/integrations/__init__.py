"""Vector stores for other projects; each needs its extra: `abi-jax[langchain]`, `abi-jax[llama-index]`."""
