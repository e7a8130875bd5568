"""Analysis of score files without the model: `hesnr analyze`, `hesnr compare`, and what the report is made of.

    score files -> frame (token arrays, sums per trajectory) -> metrics.measure -> tables

Imports neither torch nor lm-eval.
"""
