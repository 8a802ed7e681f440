"""Imported before transformers: modelling files that come with artifacts are copied to a folder of this process's own,
removed at its end, and not to the user's cache, where processes that run side by side would meet."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_folder = tempfile.TemporaryDirectory(prefix="bantam-modules-")
os.environ["HF_MODULES_CACHE"] = _folder.name
