"""What lm-eval 0.4.11 and earlier run in place of the module of this name: they look only beside the YAML file."""

from hesnr_tasks.tasks import check_lm_eval

try:
    check_lm_eval()
except Exception as error:
    raise SystemExit(f"hesnr-tasks: {error}") from None
