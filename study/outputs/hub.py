"""The Hugging Face hub: check that an adapter may be pushed, and push it."""

from data_prep.errors import UserError
from data_prep.storage import Storage, reason
from study.outputs.folder import local_files


def check_push(repo: str) -> None:
    """Check a repository's name, and that this machine is logged in. Raises `UserError`."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"must be USER/NAME of the Hugging Face hub; got {repo!r}: {reason(error)}", option="push"
        ) from error
    if "/" not in repo:
        raise UserError(f"must be USER/NAME of the Hugging Face hub; got {repo!r}", option="push")
    if get_token() is None:
        raise UserError("needs a login: run hf auth login, or set HF_TOKEN", option="push")


def push_adapter(storage: Storage, folder: str, repo: str) -> str:
    """Upload the files of an adapter into a repository, which is made private if it is new; return its address.

    Raises `UserError` where the hub refuses, or nothing is there.
    """
    from huggingface_hub import HfApi

    adapter = storage / folder
    with local_files(adapter) as local:
        if not list(local.iterdir()):
            raise UserError(f"must have an adapter to push; {adapter.shown} has none", option="push")
        try:
            api = HfApi()
            address = api.create_repo(repo, private=True, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=local, commit_message="Adapter of a ZeroSweep study")
        except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
            raise UserError(
                f"{repo} cannot be written on the Hugging Face hub: {reason(error)}", option="push"
            ) from error
    return str(address)
