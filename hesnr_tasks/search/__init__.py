"""Entropy-guided stepwise scaling (EGSS, arXiv 2602.05242): spend test-time compute where the agent hesitates.

An extra (`pip install 'hesnr-tasks[search]'`): nothing outside this package imports it before it is asked for.
"""
