"""Evaluation: what a model is worth, measured."""
