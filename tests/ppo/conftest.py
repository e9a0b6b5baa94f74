"""The tiny Llama's tokenizer, for every test of the engine."""

import pytest
from transformers import AutoTokenizer

from rlhf_lab.profiles import DATA_DIR


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA_DIR / "tiny-llama")
