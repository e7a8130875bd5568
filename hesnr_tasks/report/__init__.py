"""From lm-eval's result files and score files to tables, figures and one page (`hesnr report`: command.py).

    results, ladder, scores, downstream -> study (with a digest a checkpoint) -> tables, figures_* -> markup, page

Knows no model, and matplotlib only where figures are drawn.
"""
