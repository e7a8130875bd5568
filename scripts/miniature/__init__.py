"""The paper's experiment in miniature; README.md says what is measured, `python -m scripts.miniature` runs it."""
