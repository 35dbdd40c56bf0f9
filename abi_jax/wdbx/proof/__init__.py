"""Proofs of what a store holds, and does not hold, at a version: made from a store, checked without one."""
