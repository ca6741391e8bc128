"""Public files fetched once: pinned by address and sha256, cached, retried."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from minigpt_ext.data.files import write_atomically

_PAUSES = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth attempt
_TIMEOUT = 20.0  # seconds without an answer


@dataclass(frozen=True)
class PublicFile:
    """A file somebody else keeps: the name it has on our side, its address and the sha256 it must have."""

    name: str
    address: str
    sha256: str


TINY_SHAKESPEARE = PublicFile(
    name="tinyshakespeare.txt",
    address=(
        "https://raw.githubusercontent.com/karpathy/char-rnn/"
        "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
    ),
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def cache_folder() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/minigpt_ext, by default ~/.cache/minigpt_ext."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minigpt_ext"


def obtain(file: PublicFile, pauses: tuple[float, ...] = _PAUSES, timeout: float = _TIMEOUT) -> bytes:
    """The content of `file`: from the folder $MINIGPT_DATA, else from the cache, else from its address.

    Args:
        file: what to obtain.
        pauses: seconds to wait before each further attempt at a download that may succeed later.
        timeout: seconds the other side may stay silent.

    Raises:
        ValueError: the file in $MINIGPT_DATA, or the one downloaded, has another sha256; or it cannot be downloaded.
            The message names the file to provide and the folder to put it in.
    """
    if folder := os.environ.get("MINIGPT_DATA"):
        path = Path(folder).expanduser() / file.name
        if path.is_file():
            content = path.read_bytes()
            if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
                raise ValueError(f"{path} (MINIGPT_DATA) has sha256 {found}, expected {file.sha256}")
            return content

    cached = cache_folder() / file.name
    if cached.is_file():
        content = cached.read_bytes()
        if hashlib.sha256(content).hexdigest() == file.sha256:
            return content  # otherwise it was damaged on the disk, and is fetched again

    by_hand = (
        f"Get that file (sha256 {file.sha256}) by other means, put it at {cached}, or name the folder it lies in, "
        f"as {file.name}, in the environment variable MINIGPT_DATA"
    )
    content = _download(file, pauses, timeout, by_hand)
    if (found := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise ValueError(f"{file.address} answered with other content (sha256 {found}). {by_hand}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, content)
    except OSError as error:
        raise ValueError(f"cannot keep the download at {cached}: {error.strerror or error}") from error
    return content


def _download(file: PublicFile, pauses: tuple[float, ...], timeout: float, by_hand: str) -> bytes:
    for pause in (*pauses, None):
        try:
            with urllib.request.urlopen(file.address, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            may_pass = error.code >= 500 or error.code in (408, 429)
        except http.client.IncompleteRead as error:
            reason, may_pass = f"the connection broke after {len(error.partial)} bytes", True
        except (OSError, http.client.HTTPException) as error:
            reason, may_pass = str(getattr(error, "reason", error)) or type(error).__name__, True
        if pause is None or not may_pass:
            break
        time.sleep(pause)
    raise ValueError(f"cannot download {file.address}: {reason}. {by_hand}")
