"""For every test, the lessons' cells included: the work of who runs them is neither read nor touched."""

import os
import shutil
import tempfile

_folder = ""


def pytest_sessionstart(session):
    global _folder
    _folder = tempfile.mkdtemp()
    os.environ["RLHF_LAB_DATA"] = _folder


def pytest_sessionfinish(session):
    shutil.rmtree(_folder, ignore_errors=True)
