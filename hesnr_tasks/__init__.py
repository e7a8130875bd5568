"""HE-SNR, HE-PPL and PPL of code models over software-engineering agent trajectories.

The data flows one way, and each room knows only the next::

    readers -> Trajectory -> rendering -> filters -> alignment -> scoring -> metrics -> task

Importing this package imports neither torch nor lm-eval.
"""

__version__ = "0.1.0"
