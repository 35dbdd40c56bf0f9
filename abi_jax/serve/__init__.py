"""Serving: engines over a model directory."""
