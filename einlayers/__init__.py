"""Structured linear layers written as einsums: values (theta, dims, taxonomy, scaling) without torch, layers with it."""
