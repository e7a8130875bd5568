"""Pass@K: how likely is it that one of K answers is right? From logs (`hesnr passk`), and as an lm-eval task.

    outcome_files (logs, reports, tables) -> counts (n, c per problem) -> estimator -> curve, paired differences
    lm_tasks: any generative task of lm-eval, a seed an answer, answers kept on disk, pass@k of the verdicts

Only `lm_tasks` imports lm-eval.
"""
