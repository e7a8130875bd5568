"""A test bench without a language model: scripted agents, real repositories, real commands, real tests.

`python -m hesnr_tasks.search.bench` runs the whole experiment; results/search/README.md says what it found.
"""
