"""A ladder: checkpoints in the order of training, what is known of each, and what one may conclude from their scores.

schema (ladder.yaml, downstream scores) -> run (lm_eval on every checkpoint) -> verdict (which one to take, and why)
"""
