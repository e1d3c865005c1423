"""Where tests find the repository and test data that is not part of it."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Data, models and tokenizers that the project does not ship. Tests that need them are skipped, with
# a reason, where the folder is absent.
SHARED = pathlib.Path(os.environ.get("PSMC_TEST_DATA", ROOT.parent / "shared"))
