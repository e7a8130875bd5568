"""`python -m hesnr_tasks.cli`."""

import sys

from hesnr_tasks.cli import main

sys.exit(main())
