"""Run a script with what it would send to the Hub printed instead: python without_hub.py SCRIPT ARGUMENTS."""

import runpy
import sys
from concurrent.futures import Future
from types import SimpleNamespace

from huggingface_hub import HfApi


def upload_folder(self, repo_id, commit_message, **known):
    print(f"pushed {commit_message!r} to {repo_id}")
    done = Future()  # what a push in the background gives
    done.set_result(None)
    return done


HfApi.create_repo = lambda self, name, **known: SimpleNamespace(repo_id=f"someone/{name}")
HfApi.upload_folder = upload_folder
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
