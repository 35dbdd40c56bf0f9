"""The load generator of `abi bench serve`: requests to any OpenAI server, and how fast their answers came."""
