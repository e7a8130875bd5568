"""Where reasoning explores: the entropy of pivotal words, reflective sentences and rare sentences, against controls.

After "Reasoning with Exploration: An Entropy Perspective" (arXiv 2506.14758), which finds high entropy at logical
connectives, at self-verification and at rare sentences. Connectives open clauses, though, where entropy is high
anyway; so each difference is also given within cells of equal position, word frequency and turn.
"""
