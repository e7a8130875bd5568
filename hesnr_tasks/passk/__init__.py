"""Pass@K: how likely is it that one of K answers is right? From logs (`hesnr passk`), and as an lm-eval task.

    reading (logs, reports, tables) -> outcomes (n, c per problem) -> estimator -> curve, paired -> tables, figure
    task (lm-eval) -> sampling (a seed an answer) -> answers (kept on disk) -> estimator

Only `task`, `registered`, `sampling` and the backends import lm-eval.
"""
