"""Alignment and robustness of vision models: evaluation, training, statistics and figures."""

from alignment_security.common.environment import forget_missing_backend, name_the_user
from alignment_security.common.imports import report_failed_imports

report_failed_imports()
# before timm and matplotlib are imported
name_the_user()
forget_missing_backend()
