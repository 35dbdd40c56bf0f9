"""The OpenAI-compatible face of the engine, over HTTP."""
