"""Settings of the whole test suite."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
