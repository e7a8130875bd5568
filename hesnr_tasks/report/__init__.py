"""`hesnr report`: from lm-eval's result files and score files to tables, figures and one page.

    results, ladder -> data (ReportData, a CheckpointSummary each) -> tables, figures -> page

Imports neither torch nor lm_eval, and matplotlib only where figures are drawn.
"""
