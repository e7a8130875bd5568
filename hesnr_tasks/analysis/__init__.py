"""Everything that can be asked of score files without the model: `hesnr analyze` and `hesnr compare`.

    store -> frame (arrays) -> sums (per trajectory) -> measures (values, errors, intervals) -> tables -> output

Imports neither torch nor lm-eval.
"""
