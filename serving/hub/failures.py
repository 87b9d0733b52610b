"""What goes wrong at the Hub, as one error with a reason and a way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ken_core.errors import KenError
from ken_core.foreign import reason
from serving.hub.errors import HubError
from serving.hub.names import without_user

_LOG_IN = "set HF_TOKEN, or log in with `hf auth login`"


@contextmanager
def asking(repository: str, endpoint: str) -> Iterator[None]:
    """Turn whatever huggingface_hub raises inside the block into a `HubError`. A token is in none of its messages.

    Args:
        endpoint: URL of the Hub, as it may be shown.
    """
    from huggingface_hub import errors

    try:
        yield
    except KenError:
        raise
    except errors.OfflineModeIsEnabled:
        raise HubError("the Hub is not asked, since HF_HUB_OFFLINE is set; unset it") from None
    except errors.HFValidationError as error:
        raise HubError(f"{repository!r} is no name of a repository, expected owner/name: {reason(error)}") from None
    except errors.GatedRepoError:
        raise HubError(
            f"{endpoint}/{repository} is given to accounts that its owner accepted: ask for access on its page, and "
            f"{_LOG_IN}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"there is no repository {repository} at {endpoint}, or this account may not see it: check the name, and "
            f"for a private one {_LOG_IN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(f"{endpoint}/{repository} has no such revision; expected a branch, a tag or a commit") from None
    except errors.HfHubHTTPError as error:
        raise HubError(_refusal(repository, endpoint, error.response.status_code, error.server_message)) from error
    except Exception as error:  # the HTTP library's errors among them, which differ between versions
        why = without_user(reason(error))
        raise HubError(f"{endpoint} did not answer as expected for {repository}: {why}") from error


def _refusal(repository: str, endpoint: str, status: int, message: str | None) -> str:
    told = f"{endpoint} answered {status} for {repository}" + (f": {message}" if message else "")
    if status == 401:
        return f"{told}; the Hub wants to know who asks: {_LOG_IN}"
    if status == 403:
        return f"{told}; the token may not do this: use one that may write to {repository.partition('/')[0]}'s models"
    if status == 412:
        return f"{told}; the repository was changed meanwhile: try again"
    return told
