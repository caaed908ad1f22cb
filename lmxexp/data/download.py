"""A file of the web, downloaded once."""

import hashlib
import http.client
import shutil
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from lmxexp.data.cache import write_atomically
from lmxexp.interfaces import ConfigError

TIMEOUT_S = 30.0


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def download(url: str, cache_dir: Path) -> Path:
    """The local copy of ``url``; a second call needs no network.

    ``datasets`` reads web addresses only with packages that it does not install, and asks the server again each time.

    Raises:
        ConfigError: where there is no network, no such file, or no room for it.
    """
    name = Path(urlsplit(url).path).name or "file"
    local = cache_dir / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if local.is_file():
        return local
    try:
        response = urllib.request.urlopen(url, timeout=TIMEOUT_S)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and HTTPError are OSErrors
        raise _failed(url, error) from error

    def copy(file: BinaryIO) -> None:
        try:
            shutil.copyfileobj(response, file, 1 << 20)
        except (OSError, http.client.HTTPException) as error:
            raise _failed(url, error) from error
        expected = response.headers.get("Content-Length")
        if expected is not None and file.tell() != int(expected):
            raise _failed(url, f"{file.tell()} of {expected} bytes came")

    with response:
        try:
            write_atomically(local, copy)
        except OSError as error:
            raise ConfigError(
                f"data.cache_dir={cache_dir} cannot hold the download of {url} ({error}): set data.cache_dir or "
                "LMXEXP_CACHE to a directory with room"
            ) from error
    return local


def _failed(url: str, why: object) -> ConfigError:
    return ConfigError(
        f"data.data_files={url} could not be downloaded ({why}): check the address and the network, or give a local "
        "copy as data.path=FILE"
    )
