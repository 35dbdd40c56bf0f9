"""The batching engine: prompts in, one token a step for every slot out."""
