"""Downloads from Hugging Face, and in a sentence why one cannot be had."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cluster.errors import KanaboError, one_line


class Unavailable(KanaboError):
    """What cannot be downloaded; the message says why and what to do, and follows the name of it."""


def download(name: str, patterns: Sequence[str], kind: Literal["model", "dataset"] = "model") -> Path:
    """Return a directory with those files of a model or data set, from the cache or downloaded. Raises Unavailable."""
    from huggingface_hub import HfApi, get_token, snapshot_download
    from huggingface_hub.constants import ENDPOINT, HF_HUB_ETAG_TIMEOUT, HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if HF_HUB_OFFLINE:
        raise Unavailable(
            "it is not in the local cache, and HF_HUB_OFFLINE is set: download it where there is a network."
        )
    endpoint = os.environ.get("HF_ENDPOINT") or ENDPOINT
    page = f"{endpoint.rstrip('/')}/{'datasets/' if kind == 'dataset' else ''}{name}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    unknown = f"it does not exist, or is private: check the name, or {log_in}."
    try:
        # Asked first, with a deadline: the download's own first question has none.
        HfApi(endpoint=endpoint).repo_info(name, revision="main", repo_type=kind, timeout=HF_HUB_ETAG_TIMEOUT)
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=list(patterns), endpoint=endpoint))
    except GatedRepoError as error:
        last = "the account of this token may not read it yet" if get_token() else f"then {log_in}"
        raise Unavailable(f"it is gated: accept its licence at {page}, {last}.") from error
    except RepositoryNotFoundError as error:
        raise Unavailable(unknown) from error
    except RevisionNotFoundError as error:
        raise Unavailable("it has no revision 'main', which is all that can be loaded.") from error
    except Exception as error:  # of the network, of HTTP, of the disk: the client has no common root for them
        first = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status = getattr(getattr(first, "response", None), "status_code", None)
        if status == 401:
            refused = (
                f"{endpoint} does not accept the token: log in again with `hf auth login`, or set another HF_TOKEN."
            )
            raise Unavailable(refused if get_token() else unknown) from error
        if status == 403:
            raise Unavailable(f"{endpoint} refuses it to this account: {one_line(first)} See {page}.") from error
        raise Unavailable(
            f"it is not in the local cache and cannot be downloaded from {endpoint}: {one_line(first)} Check the name "
            "and the network, or give a path."
        ) from error
