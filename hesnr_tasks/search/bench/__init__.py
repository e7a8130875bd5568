"""A test bench without a language model: scripted agents, real repositories, real commands, real tests.

`python -m hesnr_tasks.search.bench` runs the whole experiment; README.md here says what it found.
"""
