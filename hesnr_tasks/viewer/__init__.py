"""`hesnr inspect`: what was read and what counts, in the terminal or as one self-contained HTML page."""
