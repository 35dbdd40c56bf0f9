"""Other engines on the same random weights: what the benchmarks compare this project with.

Nothing in the project imports this package. It needs torch, transformers, llama-cpp-python
and gguf, which live in an environment of their own.
"""
