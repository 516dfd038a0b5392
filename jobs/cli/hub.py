"""`mimbench card RUN --push OWNER/NAME`: upload an encoder and its card to a model hub, only after a confirmation.

Both are uploaded in one commit. A new repository is private; its owner can publish it. The hub's own client handles the
login: `hf auth login`, or HF_TOKEN. HF_ENDPOINT sets another hub than huggingface.co.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def push(card: str, encoder: Path, repository: str) -> str:
    """Upload the card and the encoder; return the address of the commit.

    Raises:
        ValueError: if `repository` is not OWNER/NAME.
        OSError: if nobody is logged in, or the hub refuses or cannot be reached.
    """
    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise ValueError(f"--push {repository} is not OWNER/NAME; give the repository's owner and name")
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    refusals: Any = HfHubHTTPError.__bases__  # OSError, and the errors of the HTTP library that the client uses
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
