"""Fetches a published data set: whole or not at all, and by one process at a time."""

import os
import shutil
from pathlib import Path

from filelock import FileLock
from torchvision.datasets.utils import download_and_extract_archive


def fetch(url: str, md5: str, root: Path, folder: str) -> None:
    """Download an archive and unpack its one folder into `root`, unless that folder is there.

    It is unpacked beside its place and renamed, so that a download that was cut short leaves nothing to mistake for
    the data. Of several processes the first downloads, the others wait for it.

    Args:
        url: of the archive.
        md5: that the archive must have.
        root: folder of the data set; made if need be.
        folder: what the archive unpacks to.

    Raises:
        ValueError: there is no way to the server, or it sent something else.
    """
    if (root / folder).is_dir():
        return
    root.mkdir(parents=True, exist_ok=True)
    aside = root / ".download"
    with FileLock(root / ".download.lock"):
        if (root / folder).is_dir():
            return
        try:
            download_and_extract_archive(url, aside, md5=md5, remove_finished=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{url} cannot be downloaded ({error}): fetch it elsewhere and unpack it into {root.absolute()}"
            ) from error
        else:
            os.replace(aside / folder, root / folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
