"""`mimbench card RUN --push OWNER/NAME`: an encoder and its card to a model hub, after a yes and never by itself.

Both go up in one commit, into a repository that is private if it is new; to show it to others is its owner's to do. Who
you are the hub's own client knows: `hf auth login`, or HF_TOKEN. HF_ENDPOINT names another hub than huggingface.co.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def push(card: str, encoder: Path, repository: str) -> str:
    """Upload both; the address of the commit.

    Raises:
        ValueError: if `repository` is not OWNER/NAME.
        OSError: if nobody is logged in, or the hub refuses or cannot be reached.
    """
    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise ValueError(f"--push {repository}: name it OWNER/NAME, as the hub does")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    refusals: Any = HfHubHTTPError.__bases__  # OSError, and the errors of whatever HTTP library the client has
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="mimbench")
    files = [
        CommitOperationAdd("README.md", card.encode()),
        CommitOperationAdd("encoder.safetensors" if encoder.suffix == ".safetensors" else encoder.name, str(encoder)),
    ]
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        return str(hub.create_commit(repository, files, commit_message="Encoder and card, by mimbench").commit_url)
    except HFValidationError as error:
        raise ValueError(f"--push {repository}: {error}") from error
    except refusals as error:
        raise OSError(f"{repository} was not uploaded: {' '.join(str(error).split())[:300]}") from error
